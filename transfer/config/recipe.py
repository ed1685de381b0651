"""Faults of a task's recipe that its keys and values show, without torch and detectron2's code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from yacs.config import CfgNode

from transfer.config.data import MAX_DETECTIONS, CocoData, DetectionData, VocData
from transfer.config.finetune import FLOAT32, PRECISION, FinetuneConfig, defaults, flat, leaves
from transfer.files import did_you_mean, one_line

OURS = ("SEED", "OUTPUT_DIR", "MODEL.WEIGHTS")
# what loader, trainer and evaluation of this project do not do
ONLY = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "TEST.EXPECTED_RESULTS": [],
    "MODEL.KEYPOINT_ON": False,
    "MODEL.LOAD_PROPOSALS": False,
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "TEST.AUG.ENABLED": False,
}
CHOICES = {FLOAT32: ("float32", "tf32"), PRECISION: ("fp16", "bf16")}
# Numbers that detectron2 would take and do nothing sensible with: key -> smallest, largest.
LIMITS: dict[str, tuple[float, float]] = {
    "SOLVER.BASE_LR": (1e-12, 1e6),
    "SOLVER.MAX_ITER": (1, 1e9),
    "SOLVER.IMS_PER_BATCH": (1, 1e6),
    "SOLVER.REFERENCE_WORLD_SIZE": (0, 1e6),
    "SOLVER.CHECKPOINT_PERIOD": (1, 1e9),
    "SOLVER.WARMUP_ITERS": (0, 1e9),
    "SOLVER.WARMUP_FACTOR": (0, 1),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.GAMMA": (0, 1),
    "SOLVER.WEIGHT_DECAY": (0, 1e6),
    "SOLVER.WEIGHT_DECAY_NORM": (0, 1e6),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (0, 1e9),
    "MODEL.BACKBONE.FREEZE_AT": (0, 5),
    "MODEL.ROI_HEADS.NUM_CLASSES": (1, 1e5),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": (1, 1e6),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": (0, 1),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": (0, 1),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": (0, 1),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": (1, 1e3),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": (1, 1e3),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": (1, 1e6),
    "MODEL.RPN.POSITIVE_FRACTION": (0, 1),
    "MODEL.RPN.NMS_THRESH": (0, 1),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": (1, 1e6),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": (1, 1e6),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": (1, 1e6),
    "MODEL.RPN.POST_NMS_TOPK_TEST": (1, 1e6),
    "INPUT.MIN_SIZE_TEST": (0, 1e5),
    "INPUT.MAX_SIZE_TRAIN": (1, 1e5),
    "INPUT.MAX_SIZE_TEST": (1, 1e5),
    "TEST.DETECTIONS_PER_IMAGE": (1, 1e5),
    "TEST.EVAL_PERIOD": (0, 1e9),
    "TEST.PRECISE_BN.NUM_ITER": (1, 1e9),
    "DATALOADER.NUM_WORKERS": (0, 1e4),
    "VIS_PERIOD": (0, 1e9),
}
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a decimal point",
    str: "text",
    list: "a list",
    tuple: "a list",
}


def config_faults(config: FinetuneConfig) -> list[str]:
    """Return one line for each key and value that no run of this task can have.

    Raises:
        FileNotFoundError: detectron2, whose defaults are asked, is not installed.
    """
    cfg: CfgNode = defaults().clone()
    faults = list(unknown_keys(config.detectron2, cfg))
    faults += [
        f"{key} is {value!r}, but the pipeline sets it; remove it from the config"
        for key in OURS
        if (value := flat(config.detectron2).get(key)) not in (None, "")
    ]
    if faults := faults or list(type_faults(config.detectron2, cfg)):
        return faults
    num_processes = config.num_gpus * config.num_nodes
    return value_faults(cfg) or recipe_faults(cfg, config.datasets, num_processes)


def value_at(config: dict[str, Any], key: str) -> Any:
    """Return the value of `SECTION.KEY`, None where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def unknown_keys(content: dict[str, Any], cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """Yield one line for each key of `content` that the config has not, or has as a section."""
    for key, value in content.items():
        if key not in cfg:
            hint = did_you_mean(str(key).upper(), map(str, cfg), prefix.__add__)
            yield f"{prefix}{key}: detectron2 has no such key{hint and f';{hint}'}"
        elif isinstance(cfg[key], CfgNode):
            if isinstance(value, dict):
                yield from unknown_keys(value, cfg[key], f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}: got {value!r}, wanted a section of keys"


def type_faults(content: dict[str, Any], cfg: CfgNode) -> Iterator[str]:
    """Merge values into the config as detectron2 does, and yield a line for each of a wrong type.

    In a list too, as far as the default's entries say which they are.
    """
    for key, value in flat(content).items():
        default, node = value_at(cfg, key), value
        for part in reversed(key.split(".")):
            node = {part: node}
        try:
            cfg.merge_from_other_cfg(CfgNode(node))
            merged = value_at(cfg, key)
            kinds = {_kind(leaf) for leaf in leaves(default)}
            if isinstance(merged, list | tuple):
                fits = not kinds or (
                    {_kind(leaf) for leaf in leaves(merged)} <= kinds
                    and _has_lists(merged) <= _has_lists(default)
                )
            else:
                fits = default is None or merged is not None
        except (KeyError, ValueError, AssertionError, AttributeError, TypeError):
            fits = False
        if not fits:
            words = WORDS.get(type(default), "another kind of value")
            like = list(default) if isinstance(default, tuple) else default
            yield f"{key} is {one_line(repr(value))}, wanted {words}, such as {like!r}"


def _kind(leaf: Any) -> type:
    return float if isinstance(leaf, int) and not isinstance(leaf, bool) else type(leaf)


def _has_lists(value: Any) -> bool:
    return any(isinstance(entry, list | tuple) for entry in value)


def value_faults(cfg: CfgNode) -> list[str]:
    """Return one line for each value that detectron2 takes, and that no run here can have."""
    faults = [
        f"{key} is {value_at(cfg, key)!r}, wanted {offered!r}"
        for key, offered in ONLY.items()
        if value_at(cfg, key) != offered
    ]
    faults += [
        f"{key} is {value_at(cfg, key)!r}, wanted one of {', '.join(choices)}"
        for key, choices in CHOICES.items()
        if value_at(cfg, key) not in choices
    ]
    if len(cfg.DATASETS.TEST) != 1:
        faults.append(f"DATASETS.TEST is {list(cfg.DATASETS.TEST)}, wanted one data set")
    faults += [
        f"{key} is {value_at(cfg, key)}, wanted {low:g} to {high:g}"
        for key, (low, high) in LIMITS.items()
        if not low <= value_at(cfg, key) <= high
    ]
    if re.fullmatch(r"cpu|mps|cuda(:\d+)?", cfg.MODEL.DEVICE) is None:
        faults.append(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, wanted cuda or cpu")
    steps, sizes = list(cfg.SOLVER.STEPS), list(cfg.INPUT.MIN_SIZE_TRAIN)
    if steps != sorted(steps) or any(step < 0 for step in steps):
        faults.append(f"SOLVER.STEPS is {steps}, wanted iterations in rising order")
    if not sizes or any(not 0 < size <= 1e5 for size in sizes):
        faults.append(f"INPUT.MIN_SIZE_TRAIN is {sizes}, wanted sizes from 1 to 1e+05 pixels")
    mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        faults.append(
            f"MODEL.PIXEL_MEAN is {mean} and MODEL.PIXEL_STD {std}, wanted three numbers each, "
            "those of PIXEL_STD above 0"
        )
    return faults


def recipe_faults(
    cfg: CfgNode, datasets: Mapping[str, DetectionData], num_processes: int
) -> list[str]:
    """Return a line for each value that the number of processes or the evaluation contradicts."""
    faults = [fault] if (fault := batch_fault(cfg, num_processes)) else []
    faults += [
        f"DATASETS.TRAIN lists {name} {count} times, wanted sets that differ"
        for name, count in Counter(cfg.DATASETS.TRAIN).items()
        if count > 1
    ]
    kept, name = cfg.TEST.DETECTIONS_PER_IMAGE, cfg.DATASETS.TEST[0]
    data = datasets.get(name)
    if isinstance(data, CocoData) and data.fraction is not None:  # AP is of the whole file
        faults.append(f"{name}: a part of a set is for training; DATASETS.TEST wants a whole one")
    if kept > MAX_DETECTIONS and not isinstance(data, VocData):
        faults.append(
            f"TEST.DETECTIONS_PER_IMAGE is {kept}, but {name} is measured by COCO's AP, which is "
            f"published for {MAX_DETECTIONS} an image and leaves out what one class has beyond "
            f"them; set it to {MAX_DETECTIONS} or less"
        )
    return faults


def batch_fault(cfg: CfgNode, num_processes: int) -> str | None:
    """Return why the images of a step cannot be dealt to the processes, or None."""
    images, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    parts = reference or num_processes
    if images % parts == 0:
        return None
    fault = f"SOLVER.IMS_PER_BATCH is {images}, wanted a multiple of {parts}"
    remedy = f"set SOLVER.IMS_PER_BATCH to {images + -images % parts}"
    if not reference:
        return f"{fault}, the number of processes; {remedy}, or start another number of them"
    if images % num_processes == 0:
        unscaled = f"trains with {images} images a step on {num_processes} process(es)"
        remedy += f", or SOLVER.REFERENCE_WORLD_SIZE to 0, which {unscaled}"
    return f"{fault}, SOLVER.REFERENCE_WORLD_SIZE (the GPUs it is meant for); {remedy}"
