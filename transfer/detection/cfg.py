"""A task's detectron2 config: its values and heads, and what stops a run before hours are spent."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import Tensor, nn

from transfer.config.command_line import weights_place_fault
from transfer.config.data import (
    KNOWN_DATASETS,
    MAX_DETECTIONS,
    DetectionData,
    VocData,
)
from transfer.config.finetune import FinetuneConfig, with_own_keys
from transfer.config.recipe import value_at, value_faults
from transfer.datasets.check import task_faults
from transfer.datasets.findings import MAX_CLASSES, Needs
from transfer.detection.loader import class_names
from transfer.detection.trainer import TRAINERS
from transfer.files import few, number_of, one_line, sha256_of
from transfer.resnet import (
    BASIC,
    COUNTER,
    PLACES,
    Architecture,
    ordered_names,
    to_detectron2,
    unfilled_fault,
)

logger = logging.getLogger(__name__)
SIDE = 64  # of a rehearsal's picture, pixels
FEW = {  # of proposals and boxes
    "PRE_NMS_TOPK_TRAIN": 32, "PRE_NMS_TOPK_TEST": 32, "POST_NMS_TOPK_TRAIN": 8,
    "POST_NMS_TOPK_TEST": 8,
}  # fmt: skip

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
    """Return the config, on the CPU where there is no GPU."""
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


def build_faults(cfg: CfgNode, optimizer: str = "sgd") -> list[str]:
    """Return one line for each value out of its range, or one for what cannot be built or run.

    A small step on one drawn picture, on the CPU, and an evaluation: what detectron2 refuses only
    when it computes is refused before hours are spent.
    """
    if faults := value_faults(cfg):
        return faults
    try:
        with _undisturbed():
            for is_train in (True, False):
                _mapped(cfg, is_train)  # read and augmented at the config's own sizes
            _rehearse(cfg, optimizer)
    except Exception as error:  # noqa: BLE001  (detectron2 raises many types for a wrong value)
        said = str(error) or str(traceback.extract_tb(error.__traceback__)[-1].line)
        reason = one_line(f"{type(error).__name__}: {said}")[:300]
        return [f"no detector can be trained with this config: {reason}"]
    return []


@contextmanager
def _undisturbed() -> Iterator[None]:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        state = numpy.random.get_state()
        try:
            yield
        finally:
            numpy.random.set_state(state)


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "picture.png"
    pixels = numpy.arange(SIDE * SIDE * 3, dtype=numpy.uint32) * 2654435761 >> 24
    Image.fromarray(pixels.astype(numpy.uint8).reshape(SIDE, SIDE, 3)).save(path)
    box = {"bbox": [8, 8, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    outline = {"segmentation": [[8, 8, 48, 8, 48, 48, 8, 48]], "iscrowd": 0}
    size = {"file_name": str(path), "image_id": 0, "height": SIDE, "width": SIDE}
    return size | {"annotations": [box | outline]}


def _mapped(cfg: CfgNode, is_train: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        mapped: dict[str, Any] = DatasetMapper(cfg, is_train=is_train)(_record(Path(folder)))
        return mapped


def _rehearse(cfg: CfgNode, optimizer: str) -> None:
    """Build the detector and its optimiser; make a training pass and an evaluation, small ones."""
    small: CfgNode = cfg.clone()
    small.defrost()
    small.MODEL.DEVICE = "cpu"
    short = min(SIDE, *cfg.INPUT.MIN_SIZE_TRAIN)
    small.INPUT.MIN_SIZE_TRAIN = (short, short)
    small.INPUT.MAX_SIZE_TRAIN = min(2 * SIDE, cfg.INPUT.MAX_SIZE_TRAIN)
    small.INPUT.MIN_SIZE_TEST, small.INPUT.MAX_SIZE_TEST = SIDE, 2 * SIDE
    small.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = min(4, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE)
    for key, count in FEW.items():
        small.MODEL.RPN[key] = min(count, cfg.MODEL.RPN[key])
    model: nn.Module = build_model(small)
    trainer = TRAINERS[optimizer]
    trainer.build_lr_scheduler(small, trainer.build_optimizer(small, model))
    parts = cfg.SOLVER.REFERENCE_WORLD_SIZE or 1
    num_images = 1 if parts >= cfg.SOLVER.IMS_PER_BATCH else 2
    with EventStorage():
        model.train()
        model([_mapped(small, is_train=True) for _ in range(num_images)])
    model.eval()
    with torch.no_grad():
        model([_mapped(small, is_train=False)])


def weights_faults(cfg: CfgNode) -> list[str]:
    """Return which entries of a backbone the detector would lose, or which it would leave random.

    Of a backbone of the config's depth and widths: converted weights of another are refused by
    their companion. The detector is built without memory for its weights.
    """
    bare: CfgNode = cfg.clone()
    bare.defrost()
    bare.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model: nn.Module = build_model(bare)
    nets, base = cfg.MODEL.RESNETS, f"resnet{cfg.MODEL.RESNETS.DEPTH}"
    width = nets.NUM_GROUPS * nets.WIDTH_PER_GROUP
    built = Architecture(
        base, nets.STEM_OUT_CHANNELS, 64 if base in BASIC else width, nets.RES2_OUT_CHANNELS,
        nets.NUM_GROUPS,
    )  # fmt: skip
    entries = {to_detectron2(name): built.shape(name) for name in ordered_names(base)}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    lost = [name for name, shape in entries.items() if _is_lost(name, shape, shapes)]
    fault = unfilled_fault(shapes, lost, {place + name for place in PLACES for name in entries})
    return [fault] if fault else []


def _is_lost(name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    places = [shapes[place + name] for place in PLACES if place + name in shapes]
    return shape not in places and not (name.endswith(COUNTER) and not places)
