"""One small step of a detector before hours are spent: built, trained, evaluated; its entries.

On one drawn picture, on the CPU: what detectron2 refuses only when it computes is refused before.
"""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

from transfer.config.recipe import value_faults
from transfer.detection.run import unfilled_fault
from transfer.detection.trainer import TRAINERS
from transfer.files import one_line
from transfer.resnet import BASIC, COUNTER, PLACES, Architecture, ordered_names, to_detectron2

SIDE = 64  # of the picture, pixels
FEW = {  # of proposals and boxes
    "PRE_NMS_TOPK_TRAIN": 32, "PRE_NMS_TOPK_TEST": 32, "POST_NMS_TOPK_TRAIN": 8,
    "POST_NMS_TOPK_TEST": 8,
}  # fmt: skip


def build_faults(cfg: CfgNode, optimizer: str = "sgd") -> list[str]:
    """Return one line for each value out of its range, or one for what cannot be built or run."""
    if faults := value_faults(cfg):
        return faults
    try:
        with _undisturbed():
            _rehearse_mapping(cfg)
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


def _rehearse_mapping(cfg: CfgNode) -> None:
    """Read and augment the picture as the config says, at its sizes."""
    _mapped(cfg, is_train=True)
    _mapped(cfg, is_train=False)


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
