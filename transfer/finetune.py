"""Stage `finetune`: a backbone becomes detection AP."""

from __future__ import annotations

import argparse
import io
import json
import logging
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup

from transfer import heads  # noqa: F401  (registers the heads that configs name)
from transfer.config import FinetuneConfig
from transfer.data_check import detection_faults
from transfer.datasets import category_ids, class_names, register
from transfer.pictures import write_pictures
from transfer.task_config import build_cfg, check_companion, config_faults
from transfer.trainer import METRICS, TRAINERS
from transfer.verify import missing_entries

RESUME_STRIDE = 1_000_003
logger = logging.getLogger(__name__)


def finetune(config: FinetuneConfig, weights: Path | None, output_dir: Path) -> dict[str, float]:
    """Train and evaluate one detector, resuming what `output_dir` holds; return its AP in percent.

    Raises:
        ValueError: the config contradicts the weights, an entry was not loaded, or it diverged.
    """
    register(config.datasets)
    cfg = build_cfg(config, weights, output_dir)
    if weights is not None:
        check_companion(cfg, weights)
    if faults := class_faults(cfg):
        raise ValueError("; ".join(faults))
    test_set = cfg.DATASETS.TEST[0]
    names = class_names(test_set)
    started_at = repair_last_checkpoint(output_dir)
    # A resumed run goes on with other images: detectron2's sampler would begin its order again.
    cfg.SEED = config.seed + RESUME_STRIDE * started_at
    default_setup(cfg, argparse.Namespace())
    trainer = TRAINERS[config.optimizer](cfg)
    trainer.resume_or_load(resume=True)
    if weights is not None and trainer.start_iter == 0:
        lost = missing_entries(trainer.model, weights)
        if lost:
            raise ValueError(f"{weights}: {len(lost)} entries were not loaded: {', '.join(lost)}")
    drop_metrics_after(output_dir / METRICS, trainer.start_iter)
    try:
        trainer.train()
    except FloatingPointError as error:
        raise ValueError(
            f"training diverged at iteration {trainer.iter} of {trainer.max_iter} ({error}); try a "
            "smaller SOLVER.BASE_LR, a longer warm-up, or another MODEL.RESNETS.NORM"
        ) from None
    with redirect_stdout(io.StringIO()):
        records = DatasetCatalog.get(test_set)
    ids = category_ids(test_set)
    write_pictures(records, names, ids, output_dir, config.num_pictures)
    for path in output_dir.glob("model_[0-9]*.pth"):
        path.unlink()
    return trainer.metrics


def repair_last_checkpoint(output_dir: Path) -> int:
    """Return the iteration to resume at; a pointer to a lost checkpoint goes back to the last kept.

    A final model that is gone (or a pointer without any checkpoint) means starting over.
    """
    pointer = output_dir / "last_checkpoint"
    kept = sorted(output_dir.glob("model_[0-9]*.pth"))
    if not pointer.exists():
        return 0
    name = pointer.read_text(encoding="utf-8").strip()
    if not name or not (output_dir / name).is_file():
        logger.warning("%s: names %r, which is not there", pointer, name)
        if not kept:
            pointer.unlink()
            return 0
        name = kept[-1].name
        pointer.write_text(name, encoding="utf-8")
    digits = "".join(character for character in name if character.isdigit())
    return int(digits) + 1 if digits else 0


def drop_metrics_after(path: Path, step: int) -> None:
    """Drop the lines that a killed run logged after the checkpoint it is resumed from."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")


def class_faults(cfg: CfgNode) -> list[str]:
    """Return how the registered sets' classes differ from each other and from NUM_CLASSES."""
    test_set, num_classes = cfg.DATASETS.TEST[0], cfg.MODEL.ROI_HEADS.NUM_CLASSES
    names = class_names(test_set)
    faults = []
    if len(names) != num_classes:
        faults.append(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but {test_set} has {len(names)} classes"
        )
    for name in cfg.DATASETS.TRAIN:
        if class_names(name) != names:
            faults.append(f"{name} and {test_set} do not have the same classes in one order")
    return faults


def run_stage(
    config: dict[str, Any], inputs: dict[str, Path], output_dir: Path
) -> dict[str, float]:
    """Entry point for the pipeline: `finetune` with the converted weights, or from random."""
    return finetune(FinetuneConfig.model_validate(config), inputs.get("weights"), output_dir)


def check_stage(config: dict[str, Any]) -> list[str]:
    """Return what would stop the run: keys unknown to detectron2, faults in the data."""
    settings = FinetuneConfig.model_validate(config)
    faults = config_faults(settings)
    if faults:
        return faults
    cfg = build_cfg(settings, None, Path())
    for name, data in settings.datasets.items():
        evaluated = name in cfg.DATASETS.TEST
        masks = cfg.MODEL.MASK_ON
        faults += detection_faults(data, evaluated=evaluated, masks=masks, name=name)
    if not faults:
        register(settings.datasets)
        faults += class_faults(cfg)
    return faults
