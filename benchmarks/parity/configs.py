"""MoCo's detection configs beside ours, both with detectron2's defaults, key by key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from benchmarks.parity.comparison import Row, compare_values
from benchmarks.parity.peers import ROOT
from transfer.detection.cli import read_config

PAIRS = {
    "pascal_voc_R_50_C4_24k_moco": "voc_faster_rcnn_r50_c4_24k",
    "coco_R_50_C4_2x_moco": "coco_mask_rcnn_r50_c4_2x",
}
EXPLAINED = {
    "MODEL.WEIGHTS": "both are filled in by whoever starts the run",
    "SEED": "detectron2 draws one and does not keep it; ours is 0, so that a run can be resumed",
    "SOLVER.AMP.PRECISION": "a key of ours, without effect unless SOLVER.AMP.ENABLED",
    "SOLVER.CHECKPOINT_PERIOD": "how much a killed run loses",
    "SOLVER.REFERENCE_WORLD_SIZE": "without effect on 8 GPUs; on fewer ours scales the recipe",
}


def compare(paths: dict[str, Path], scratch: Path) -> list[Row]:
    """Return a row for each of MoCo's two recipes."""
    return [
        compare_values(
            ("configs", f"{theirs}.yaml"),
            dict(flat(their_cfg(paths["moco"], theirs))),
            dict(flat(read_config(str(our_config(ours)), []))),
            EXPLAINED,
        )
        for theirs, ours in PAIRS.items()
    ]


def their_config(moco: Path, name: str) -> Path:
    """Return one of MoCo's config files."""
    return moco / "detection" / "configs" / f"{name}.yaml"


def our_config(name: str) -> Path:
    """Return one of this project's task configs."""
    return ROOT / "configs" / "transfer" / f"{name}.yaml"


def their_cfg(moco: Path, name: str) -> CfgNode:
    """Return detectron2's defaults with one of MoCo's files, read as MoCo's script does."""
    cfg = get_cfg()
    cfg.merge_from_file(str(their_config(moco, name)))
    return cfg


def flat(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a config with its sections, and its value."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
