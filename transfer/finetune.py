"""Stage `finetune`: a backbone becomes detection AP."""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup

from transfer import heads  # noqa: F401  (registers the heads that configs name)
from transfer.config import FinetuneConfig
from transfer.data_check import detection_faults
from transfer.datasets import class_names, register
from transfer.pictures import write_pictures
from transfer.trainer import METRICS, TRAINERS
from transfer.verify import missing_entries

FINAL = "model_final.pth"
logger = logging.getLogger(__name__)


def build_cfg(config: FinetuneConfig, weights: Path | None, output_dir: Path) -> CfgNode:
    """Return detectron2's config: defaults, the task's keys, and where to run.

    Raises:
        ValueError: the task names a key that detectron2 does not have, or a value it refuses.
    """
    cfg = get_cfg()
    try:
        cfg.merge_from_other_cfg(CfgNode(config.detectron2))
        cfg.MODEL.WEIGHTS = "" if weights is None else str(weights)
        cfg.OUTPUT_DIR = str(output_dir)
        cfg.SEED = config.seed
        cfg.TEST.EVAL_PERIOD = int(cfg.TEST.EVAL_PERIOD)
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(f"detectron2 refuses the config: {error.args[0]}") from None
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"DATASETS.TEST is {list(cfg.DATASETS.TEST)}, wanted one data set")
    if not torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu":
        logger.warning("no CUDA device: running on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def check_companion(cfg: CfgNode, weights: Path) -> None:
    """Compare the config with what the converted weights demand (their companion `.json`).

    Raises:
        ValueError: any key differs, with every difference.
    """
    path = weights.with_suffix(".json")
    if not path.is_file():
        raise ValueError(f"{path}: not there; make weights with tools/convert_to_detectron2.py")
    companion = json.loads(path.read_text(encoding="utf-8"))
    faults = []
    for key, wanted in companion["detectron2"].items():
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        got = list(node) if isinstance(node, list | tuple) else node
        if not agree(got, wanted):
            faults.append(f"{key} is {got}, wanted {wanted}")
    if faults:
        raise ValueError(f"{weights}: the config contradicts these weights: {'; '.join(faults)}")


def agree(got: Any, wanted: Any) -> bool:
    """Return whether two config values are equal, numbers up to rounding."""
    if isinstance(got, list) and isinstance(wanted, list) and len(got) == len(wanted):
        return all(agree(*pair) for pair in zip(got, wanted, strict=True))
    if isinstance(got, float) and isinstance(wanted, int | float):
        return math.isclose(got, wanted, rel_tol=1e-6, abs_tol=1e-6)
    return bool(got == wanted)


def finetune(config: FinetuneConfig, weights: Path | None, output_dir: Path) -> dict[str, float]:
    """Train and evaluate one detector, resuming what `output_dir` holds; return its AP in percent.

    Raises:
        ValueError: the config contradicts the weights, an entry was not loaded, or it diverged.
    """
    register(config.datasets)
    cfg = build_cfg(config, weights, output_dir)
    if weights is not None:
        check_companion(cfg, weights)
    test_set = cfg.DATASETS.TEST[0]
    names = class_names(test_set)
    if len(names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but {test_set} has "
            f"{len(names)} classes"
        )
    for name in cfg.DATASETS.TRAIN:
        if class_names(name) != names:
            raise ValueError(f"{name} and {test_set} do not have the same classes in one order")
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
    write_pictures(records, names, output_dir, config.num_pictures)
    for path in output_dir.glob("model_[0-9]*.pth"):
        path.unlink()
    return trainer.metrics


def drop_metrics_after(path: Path, step: int) -> None:
    """Drop the lines that a killed run logged after the checkpoint it is resumed from."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")


def run_stage(
    config: dict[str, Any], inputs: dict[str, Path], output_dir: Path
) -> dict[str, float]:
    """Entry point for the pipeline: `finetune` with the converted weights, or from random."""
    return finetune(FinetuneConfig.model_validate(config), inputs.get("weights"), output_dir)


def check_stage(config: dict[str, Any]) -> list[str]:
    """Return what would stop the run: keys unknown to detectron2, faults in the data."""
    settings = FinetuneConfig.model_validate(config)
    faults = []
    try:
        build_cfg(settings, None, Path())
    except ValueError as error:
        faults.append(str(error))
    tested = str(settings.detectron2.get("DATASETS", {}).get("TEST"))
    for name, data in settings.datasets.items():
        faults += detection_faults(data, evaluated=name in tested)
    return faults
