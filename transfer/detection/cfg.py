"""A task's detectron2 config: its values and heads, and what stops a run before hours are spent."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import Tensor, nn

from transfer.config.command_line import unknown_keys, weights_place_fault
from transfer.config.data import (
    KNOWN_DATASETS,
    MAX_DETECTIONS,
    CocoData,
    DetectionData,
    VocData,
)
from transfer.config.finetune import FLOAT32, PRECISION, FinetuneConfig, with_own_keys
from transfer.datasets.check import task_faults
from transfer.datasets.findings import MAX_CLASSES, Needs, few, number_of
from transfer.detection.loader import class_names
from transfer.detection.trainer import TRAINERS
from transfer.files import one_line, sha256_of

OURS = ("SEED", "OUTPUT_DIR", "MODEL.WEIGHTS")
# what loader and evaluation of this project do not do
ONLY = {
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
    "MODEL.ROI_HEADS.NUM_CLASSES": (1, 1e5),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": (1, 1e6),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": (0, 1),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": (0, 1),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": (0, 1),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": (1, 1e6),
    "MODEL.RPN.NMS_THRESH": (0, 1),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": (1, 1e6),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": (1, 1e6),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": (1, 1e6),
    "MODEL.RPN.POST_NMS_TOPK_TEST": (1, 1e6),
    "INPUT.MIN_SIZE_TEST": (0, 1e5),
    "INPUT.MAX_SIZE_TRAIN": (1, 1e5),
    "INPUT.MAX_SIZE_TEST": (1, 1e5),
    "TEST.DETECTIONS_PER_IMAGE": (1, 1e5),
    "DATALOADER.NUM_WORKERS": (0, 1e4),
}
logger = logging.getLogger(__name__)

if "Res5ROIHeadsExtraNorm" not in ROI_HEADS_REGISTRY:

    @ROI_HEADS_REGISTRY.register()
    class Res5ROIHeadsExtraNorm(Res5ROIHeads):  # type: ignore[misc]
        """The C4 box head with one more normalisation after res5 (MoCo's detection recipe)."""

        @classmethod
        def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
            """Return the arguments of `Res5ROIHeads` with the norm appended to its res5."""
            arguments: dict[str, Any] = super().from_config(cfg, input_shape)
            res5 = arguments["res5"]
            norm = get_norm(cfg.MODEL.RESNETS.NORM, res5[-1].out_channels)
            arguments["res5"] = nn.Sequential(*res5)
            arguments["res5"].add_module("norm", norm)
            return arguments


def default_cfg() -> CfgNode:
    """Return detectron2's defaults, and the keys of this project."""
    return with_own_keys(get_cfg())


def value_at(config: dict[str, Any], key: str) -> Any:
    """Return the value of `SECTION.KEY`, None where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def config_faults(config: FinetuneConfig) -> list[str]:
    """Return one line for each key that detectron2 lacks, misuses, or that the run itself sets."""
    faults = list(unknown_keys(config.detectron2, default_cfg()))
    for key in OURS:
        value = value_at(config.detectron2, key)
        if value not in (None, ""):
            faults.append(
                f"{key} is {value!r}, but the pipeline sets it; remove it from the config"
            )
    if faults:
        return faults
    try:
        build_cfg(config, None, Path())
    except ValueError as error:
        return [str(error)]
    return []


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
        cfg.SOLVER.OPTIMIZER = config.optimizer
        cfg.TEST.EVAL_PERIOD = int(cfg.TEST.EVAL_PERIOD)
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError) as error:
        raise ValueError(f"detectron2 refuses the config: {one_line(error)}") from None
    return for_this_machine(cfg)


def for_this_machine(cfg: CfgNode) -> CfgNode:
    """Return the config, on the CPU where there is no GPU.

    Raises:
        ValueError: it asks for what is not offered here.
    """
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
    if faults:
        raise ValueError("; ".join(faults))
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
    if companion.get("output_sha256") != sha256_of(weights):
        raise ValueError(f"{weights}: not the file that {path.name} describes; convert it again")
    faults = []
    basic = companion["detectron2"].get("MODEL.RESNETS.DEPTH", 50) < 50
    for key, demanded in companion["detectron2"].items():
        if basic and key == "MODEL.RESNETS.STRIDE_IN_1X1":
            continue  # nothing reads it: basic blocks have no 1x1 convolution
        value = value_at(cfg, key)
        value = list(value) if isinstance(value, tuple) else value
        if not agree(value, demanded):
            faults.append(f"{key} is {value}, wanted {demanded}")
    if faults:
        raise ValueError(f"{weights}: the config contradicts these weights: {'; '.join(faults)}")


def agree(one: Any, other: Any) -> bool:
    """Return whether two config values are equal, numbers up to rounding."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(agree(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
    return bool(one == other)


def build_faults(cfg: CfgNode, optimizer: str = "sgd") -> list[str]:
    """Return one line for each number out of its range, or one for what cannot be built.

    The detector is built without memory for its weights.
    """
    faults = [
        f"{key} is {value_at(cfg, key)}, wanted {low:g} to {high:g}"
        for key, (low, high) in LIMITS.items()
        if not low <= value_at(cfg, key) <= high
    ]
    steps, sizes = list(cfg.SOLVER.STEPS), list(cfg.INPUT.MIN_SIZE_TRAIN)
    if steps != sorted(steps) or any(step < 0 for step in steps):
        faults.append(f"SOLVER.STEPS is {steps}, wanted iterations in rising order")
    if not sizes or any(not 0 < size <= 1e5 for size in sizes):
        faults.append(f"INPUT.MIN_SIZE_TRAIN is {sizes}, wanted sizes from 1 to 1e+05 pixels")
    if faults:
        return faults
    bare: Any = cfg.clone()
    bare.defrost()
    bare.MODEL.DEVICE = "meta"
    trainer = TRAINERS[optimizer]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DatasetMapper(bare, is_train=True)
            with torch.device("meta"):
                model = build_model(bare)
                trainer.build_lr_scheduler(bare, trainer.build_optimizer(bare, model))
    except Exception as error:  # noqa: BLE001  (detectron2 raises many types for a wrong value)
        reason = one_line(f"{type(error).__name__}: {error}")[:300]
        return [f"no detector can be built from this config: {reason}"]
    return []


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


def notes_before_start(
    cfg: CfgNode, datasets: Mapping[str, DetectionData], *, has_weights: bool
) -> list[str]:
    """Return a line for what is allowed and seldom meant."""
    notes = []
    frozen, name = cfg.MODEL.BACKBONE.FREEZE_AT, cfg.DATASETS.TEST[0]
    if frozen > 0 and not has_weights:
        parts = ", ".join(["its stem", "res2", "res3", "res4", "res5"][:frozen])
        notes.append(
            f"MODEL.BACKBONE.FREEZE_AT is {frozen}: of a backbone that starts at random, {parts} "
            f"{'stays' if frozen == 1 else 'stay'} random to the end, which costs AP; 0 trains all "
            "of it"
        )
    kept = cfg.TEST.DETECTIONS_PER_IMAGE
    if kept < MAX_DETECTIONS:
        notes.append(
            f"TEST.DETECTIONS_PER_IMAGE is {kept}: AP is of at most {number_of(kept, 'detection')} "
            f"an image, others' of {MAX_DETECTIONS}"
        )
    data = datasets.get(name)
    if isinstance(data, VocData) and data.year == 2007 and name not in KNOWN_DATASETS:
        notes.append(
            f"{name}: AP is {data.ap_rule()}, as for every set without a `year`; `year: 2012` "
            "takes the area under the curve"
        )
    return notes


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


def data_faults(
    cfg: CfgNode, datasets: Mapping[str, DetectionData], *, trains: bool = True
) -> list[str]:
    """Return the faults of a task's sets, those between what it trains on and is measured on too.

    Notes are logged. A task that only evaluates (`trains` is False) asks less.
    """
    train, test = cfg.DATASETS.TRAIN if trains else (), cfg.DATASETS.TEST
    masks = cfg.MODEL.MASK_ON
    sets = {
        name: (
            data,
            Needs(
                evaluated=name in test,
                masks=masks,
                trained=name in train,
                polygons=masks and cfg.INPUT.MASK_FORMAT == "polygon",
                drops_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                num_kept=cfg.TEST.DETECTIONS_PER_IMAGE,
                train_sets=(tuple(train),) if trains and name in test else (),
            ),
        )
        for name, data in datasets.items()
        if name in train or name in test
    }
    return task_faults(sets)


def class_faults(cfg: CfgNode) -> list[str]:
    """Return how the registered sets' classes differ from each other and from NUM_CLASSES."""
    test_set, num_classes = cfg.DATASETS.TEST[0], cfg.MODEL.ROI_HEADS.NUM_CLASSES
    names = class_names(test_set)
    faults = [
        f"{name} and {test_set} do not have the same classes in one order"
        for name in cfg.DATASETS.TRAIN
        if class_names(name) != names
    ]
    if len(names) != num_classes:
        has = f"{test_set} has {len(names)} classes: {few(names, MAX_CLASSES)}"
        faults.insert(0, f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but {has}")
    return faults


def weights_fault(weights: str) -> str | None:
    """Return why MODEL.WEIGHTS cannot be used: it must be empty or a local .pkl or .pth file.

    A .pkl is vouched for by its companion; of a .pth `model` must hold tensors by name.
    """
    if fault := weights_place_fault(weights):
        return fault
    path = Path(weights)
    if not weights or path.suffix == ".pkl":
        return None
    remedy = "wanted a .pth of an earlier run, or a .pkl of tools/convert_to_detectron2.py"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (damage shows in many types)
        return f"{path}: torch cannot read it ({type(error).__name__}); {remedy}"
    model = content.get("model") if isinstance(content, dict) else None
    sound = isinstance(model, dict) and all(isinstance(value, Tensor) for value in model.values())
    return None if sound else f"{path}: no tensors by name under 'model'; {remedy}"
