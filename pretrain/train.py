"""Stage `pretrain`: a folder of images becomes `backbone.pth`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import ImageFiles, open_images
from pretrain.probes.online import TrainingProbe, after_epoch
from pretrain.runtime.checkpoint import BACKBONE, save_backbone
from pretrain.runtime.distributed import joined_processes
from pretrain.training.trainer import Trainer
from pretrain.views.sharded import too_few_images

FULL_CHECK_LIMIT = 20_000


def pretrain(config: PretrainConfig, output_dir: Path) -> dict[str, float]:
    """Train to the end, resuming what `output_dir` already holds; return the final metrics.

    Writes `backbone.pth`, `last.pth`, `metrics.jsonl` and TensorBoard events. In one process, or
    in each of those that torchrun's variables name; all but the first return no metrics.
    """
    with joined_processes() as processes:
        output_dir.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(config, output_dir, processes, after_epoch(config))
        metrics = trainer.train()
        if processes.is_first:
            save_backbone(trainer.model.encoder, config, output_dir / BACKBONE)
        return metrics


def run_stage(
    config: dict[str, Any], inputs: dict[str, Path], output_dir: Path
) -> dict[str, float]:
    """Entry point for the pipeline: `pretrain` with a plain config and no inputs."""
    del inputs
    return pretrain(PretrainConfig.model_validate(config), output_dir)


def check_stage(config: dict[str, Any]) -> list[str]:
    """Return what would stop the run: data that are missing, images that cannot be read.

    Every image is decoded up to 20,000 of them; a larger folder is only listed.
    """
    settings = PretrainConfig.model_validate(config)
    try:
        images = open_images(settings.data)
    except ValueError as error:
        return [str(error)]
    faults = [fault] if (fault := too_few_images(settings, len(images))) else []
    if settings.probe is not None:
        try:
            TrainingProbe(settings, settings.probe)
        except ValueError as error:
            faults.append(f"probe: {error}")
    if isinstance(images, ImageFiles) and len(images) <= FULL_CHECK_LIMIT:
        for index in range(len(images)):
            try:
                images.read(index)
            except ValueError as error:
                faults.append(str(error))
    return faults
