"""A task's detectron2 config as a plan reads it: its data sets, its contradictions to a backbone.

Fine-tuning compares task and backbone again, from the converted weights; here a contradiction costs
a second instead of a pretraining, or of the baseline that stands before it.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.stages.stage import Stage

if TYPE_CHECKING:
    from pretrain.config.pretrain import PretrainConfig

# detectron2's values where a config is silent (detectron2/config/defaults.py)
DEFAULTS: dict[str, Any] = {
    "DATASETS.TEST": [],
    "DATASETS.TRAIN": [],
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.KEYPOINT_ON": False,
    "MODEL.MASK_ON": False,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MAX_ITER": 40_000,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.PRECISE_BN.ENABLED": False,
    "TEST.PRECISE_BN.NUM_ITER": 200,
}
STATED_AS = {  # in the `input` of a backbone
    "INPUT.FORMAT": "order",
    "MODEL.PIXEL_MEAN": "mean",
    "MODEL.PIXEL_STD": "std",
    "MODEL.RESNETS.STRIDE_IN_1X1": "stride_in_1x1",
}
# Of networks of basic blocks (ResNet-18 and 34) nothing reads the stride, and detectron2 builds
# them with one width only.
OF_BOTTLENECKS = ("MODEL.RESNETS.RES2_OUT_CHANNELS", "MODEL.RESNETS.STRIDE_IN_1X1")


def dataset_names(content: dict[str, Any], path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names under DATASETS.TRAIN and DATASETS.TEST of a task, and the faults there."""
    names: dict[str, list[str]] = {}
    faults: list[str] = []
    section = content.get("DATASETS")
    for key in ("TRAIN", "TEST"):
        value = section.get(key) if isinstance(section, dict) else None
        value = _literal(value) if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not value:
            faults.append(f"{path}: DATASETS.{key}: wanted a list of data set names")
            continue
        names[key] = [str(name) for name in value]
    return names, faults


def misfits(stage: Stage, demands: dict[str, Any]) -> list[str]:
    """Return where a task's stage contradicts what the weights it will get demand.

    What was taken from a checkpoint or its family, its user can state otherwise.
    """
    where = f"does not fit backbone {stage.backbone}"
    of_weights = stage.inputs["weights"].settings
    stated = of_weights.get("input") or {}
    lines = []
    for fault in disagreements(demands, stage.settings["detectron2"]):
        key = fault.partition(" is ")[0]
        part = STATED_AS.get(key)
        hint = ""
        if "checkpoint" in of_weights and part and stated.get(part) is None:
            hint = (
                f" as the checkpoint or its family's row says; if it was trained otherwise, state "
                f"its input.{part}, else override {key} in the task"
            )
        lines.append(f"{where}: {fault}{hint}")
    return lines


def demands_of(config: PretrainConfig) -> dict[str, Any]:
    """Return the detectron2 keys that a backbone pretrained so demands of every task."""
    depth = int(config.model.arch.removeprefix("resnet"))
    return {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [round(255 * value, 6) for value in config.augment.mean],
        "MODEL.PIXEL_STD": [round(255 * value, 6) for value in config.augment.std],
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    }


def disagreements(demands: dict[str, Any], task: dict[str, Any]) -> list[str]:
    """Return one line for each key of the task that contradicts what a backbone demands."""
    basic = demands.get("MODEL.RESNETS.DEPTH", 50) < 50
    faults = []
    for key, value in demands.items():
        got = task_value(task, key)
        if not _equal(got, value) and not (basic and key in OF_BOTTLENECKS):
            faults.append(f"{key} is {got}, wanted {value}")
    return faults


def stem_fault(config: PretrainConfig) -> str | None:
    """Return why no detectron2 task can take this backbone, or None."""
    if config.model.stem == "imagenet":
        return None
    return (
        f"model.stem is {config.model.stem} (a 3x3 first convolution of stride 1), but "
        "detectron2's ResNet has a 7x7 one of stride 2 and a max-pool; use model.stem imagenet, "
        "or pretrain and probe this backbone without tasks (tools/pretrain.py)"
    )


def task_value(task: dict[str, Any], key: str) -> Any:
    """Return the value of a key of DEFAULTS, detectron2's own where the config is silent."""
    node: Any = task
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return DEFAULTS[key]
        node = node[part]
    value = _literal(node) if isinstance(node, str) else None  # as yacs reads text
    return node if value is None else value


def _literal(text: str) -> Any:
    """Return the value of a Python literal; None of anything else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _equal(got: Any, value: Any) -> bool:
    if isinstance(value, list):
        sequence = isinstance(got, list | tuple) and len(got) == len(value)
        return sequence and all(_equal(*pair) for pair in zip(got, value, strict=True))
    if isinstance(value, float) and isinstance(got, int | float):
        return math.isclose(got, value, rel_tol=1e-6, abs_tol=1e-6)
    return bool(got == value)
