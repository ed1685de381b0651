"""Stage `pretrain`: a folder of images becomes `backbone.pth`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import open_images, unreadable
from pretrain.models import BACKBONE, save_backbone
from pretrain.probes import TrainingProbe, probe_kept_states
from pretrain.runtime.distributed import joined_processes
from pretrain.training import Trainer
from pretrain.training.precision import machine_faults
from pretrain.views import loader_faults, too_few_images


def pretrain(config: PretrainConfig, output_dir: Path) -> dict[str, float]:
    """Train to the end, resuming what `output_dir` already holds; return the final metrics.

    Writes `backbone.pth`, `last.pth`, `metrics.jsonl` and TensorBoard events. In one process, or
    in each of those that torchrun's variables name; all but the first return no metrics.

    Args:
        config: The run. Its `batch_size` counts the images of all processes together.
        output_dir: The folder of this run, made if need be; one run a folder.

    Raises:
        ValueError: The data, the machine or what the folder holds does not fit the config.
        DivergedError: The loss or its gradient is not finite.
        SystemExit: A signal asked to stop; the state is saved, the code is 75.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = tempfile.TemporaryDirectory()
        >>> images, run = Path(folder.name, "images"), Path(folder.name, "run")
        >>> images.mkdir()
        >>> for level in range(8):
        ...     Image.effect_noise((32, 32), 9 * level + 9).save(images / f"{level}.png")
        >>> config = PretrainConfig.model_validate({
        ...     "method": "w-mse", "data": {"name": "noise", "root": images},
        ...     "augment": {"size": 32}, "model": {"embedding_dim": 2},
        ...     "loss": {"name": "w-mse", "sub_batch": 4}, "optimizer": {"lr": 0.001},
        ...     "batch_size": 4, "max_steps": 1,
        ... })
        >>> sorted(pretrain(config, run))[:2]
        ['embedding/effective_rank', 'embedding/normalized_stable_rank']
        >>> sorted(path.name for path in run.iterdir())
        ['backbone.pth', 'last.pth', 'metrics.jsonl', 'tensorboard']
        >>> folder.cleanup()
    """
    with joined_processes() as processes:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = None if config.probe is None else TrainingProbe(config, config.probe)
        trainer = Trainer(config, output_dir, processes, probe)
        metrics = trainer.train()
        if processes.is_main:
            save_backbone(trainer.model.encoder, config, output_dir / BACKBONE)
        return metrics


def run_stage(
    config: dict[str, Any], inputs: dict[str, Path], output_dir: Path
) -> dict[str, float]:
    """Entry point for the pipeline: `pretrain` with a plain config and no inputs."""
    del inputs
    return pretrain(PretrainConfig.model_validate(config), output_dir)


def probe_stage(config: dict[str, Any], output_dir: Path) -> None:
    """Entry point for the pipeline: the probe of a run that was finished before it was given."""
    probe_kept_states(PretrainConfig.model_validate(config), output_dir)


def stage_precision(config: dict[str, Any]) -> str:
    """Return in which type encoder and projector are computed, for the provenance."""
    return PretrainConfig.model_validate(config).compute.precision


def check_machine(config: dict[str, Any], num_processes: int = 1) -> list[str]:
    """Return what this one machine lacks for so many processes: a GPU, shared memory."""
    settings = PretrainConfig.model_validate(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    faults = machine_faults(settings, num_processes, device)
    return faults + loader_faults(settings, num_processes, num_processes)


def check_stage(config: dict[str, Any]) -> list[str]:
    """Return what would stop the run: data that are missing, images that cannot be read.

    Every image is decoded up to 20,000 of them; a larger folder is only listed.
    """
    settings = PretrainConfig.model_validate(config)
    try:
        images = open_images(settings.data)
    except ValueError as error:
        return [str(error)]
    faults = too_few_images(settings, len(images))
    if settings.probe is not None:
        try:
            TrainingProbe(settings, settings.probe)
        except ValueError as error:
            faults.append(f"probe: {error}")
    return faults + unreadable(images)
