"""A task's detectron2 config: complete, without unknown keys, and in agreement with the weights."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from transfer.config.finetune import FinetuneConfig
from transfer.detection.task_values import value_at

OURS = ("SEED", "OUTPUT_DIR", "MODEL.WEIGHTS")
# what the loader of this project does not do
ONLY = {
    "MODEL.KEYPOINT_ON": False,
    "MODEL.LOAD_PROPOSALS": False,
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
}
PRECISIONS = ("fp16", "bf16")
logger = logging.getLogger(__name__)


def default_cfg() -> CfgNode:
    """Return detectron2's defaults, and `SOLVER.AMP.PRECISION`, which 0.6 lacks."""
    cfg = get_cfg()
    cfg.SOLVER.AMP.PRECISION = "fp16"
    return cfg


def config_faults(config: FinetuneConfig) -> list[str]:
    """Return one line for each key that detectron2 lacks, misuses, or that the run itself sets."""
    faults = list(unknown_keys(config.detectron2, default_cfg()))
    for key in OURS:
        node: Any = config.detectron2
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if node not in (None, ""):
            faults.append(f"{key} is {node!r}, but the pipeline sets it; remove it from the config")
    if faults:
        return faults
    try:
        build_cfg(config, None, Path())
    except ValueError as error:
        return [str(error)]
    return []


def unknown_keys(content: dict[str, Any], cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """Yield one line for each key of `content` that the config has not, or has as a section."""
    for key, value in content.items():
        if key not in cfg:
            close = get_close_matches(str(key).upper(), [str(name) for name in cfg], n=1)
            hint = "".join(f"; did you mean {prefix}{name}?" for name in close)
            yield f"{prefix}{key}: detectron2 has no such key{hint}"
        elif isinstance(cfg[key], CfgNode):
            if isinstance(value, dict):
                yield from unknown_keys(value, cfg[key], f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}: got {value!r}, wanted a section of keys"


def build_cfg(config: FinetuneConfig, weights: Path | None, output_dir: Path) -> CfgNode:
    """Return detectron2's config: defaults, the task's keys, and where to run.

    Raises:
        ValueError: the task names a key that detectron2 does not have, or a value it refuses.
    """
    cfg = default_cfg()
    try:
        cfg.merge_from_other_cfg(CfgNode(config.detectron2))
        cfg.MODEL.WEIGHTS = "" if weights is None else str(weights)
        cfg.OUTPUT_DIR = str(output_dir)
        cfg.SEED = config.seed
        cfg.TEST.EVAL_PERIOD = int(cfg.TEST.EVAL_PERIOD)
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"detectron2 refuses the config: {reason}") from None
    return for_this_machine(cfg)


def for_this_machine(cfg: CfgNode) -> CfgNode:
    """Return the config, on the CPU and in float32 where there is no GPU.

    Raises:
        ValueError: it asks for what is not offered here.
    """
    faults = [
        f"{key} is {value_at(cfg, key)!r}, wanted {wanted!r}"
        for key, wanted in ONLY.items()
        if value_at(cfg, key) != wanted
    ]
    if cfg.SOLVER.AMP.PRECISION not in PRECISIONS:
        faults.append(
            f"SOLVER.AMP.PRECISION is {cfg.SOLVER.AMP.PRECISION!r}, "
            f"wanted one of {', '.join(PRECISIONS)}"
        )
    if len(cfg.DATASETS.TEST) != 1:
        faults.append(f"DATASETS.TEST is {list(cfg.DATASETS.TEST)}, wanted one data set")
    if faults:
        raise ValueError("; ".join(faults))
    if not torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu":
        logger.warning("no CUDA device: running on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED:
        logger.warning("SOLVER.AMP needs a CUDA device: running in float32")
        cfg.SOLVER.AMP.ENABLED = False
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
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if companion.get("output_sha256") != digest:
        raise ValueError(f"{weights}: not the file that {path.name} describes; convert it again")
    for key, wanted in companion["detectron2"].items():
        node = value_at(cfg, key)
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
