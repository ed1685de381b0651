"""Proof by numbers: the same features before and after conversion."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

from transfer.checkpoints import Backbone
from transfer.features import STAGES, largest_difference, reference


def detectron2_config(backbone: Backbone) -> CfgNode:
    """Return detectron2's defaults with the keys that a backbone demands, and plain BatchNorm."""
    cfg = get_cfg()
    for key, value in backbone.detectron2.items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.RESNETS.NORM = "BN"
    return cfg


def fpn_model(backbone: Backbone) -> nn.Module:
    """Return an FPN detector's backbone, named as in the detector, filled with NaN."""
    cfg = detectron2_config(backbone)
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    cfg.MODEL.FPN.IN_FEATURES = list(STAGES)
    model = nn.Module()
    with torch.device("meta"):
        model.backbone = build_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
    return filled_with_nan(model)


def c4_model(backbone: Backbone) -> nn.Module:
    """Return a C4 detector's backbone and heads, named as in the detector, filled with NaN."""
    cfg = detectron2_config(backbone)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    model = nn.Module()
    with torch.device("meta"):
        network = build_resnet_backbone(cfg, ShapeSpec(channels=3))
        model.backbone = network
        model.roi_heads = Res5ROIHeads(cfg, network.output_shape())
    return filled_with_nan(model)


def filled_with_nan(model: nn.Module) -> nn.Module:
    """Return the model in memory, every entry NaN (counters -1): what no file overwrites shows."""
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    return model


def load_quietly(model: nn.Module, weights: Path) -> None:
    """Load a file by detectron2's own checkpointer; what it did is checked by value, not by log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        DetectionCheckpointer(model).load(str(weights))
    finally:
        logging.disable(before)


@dataclass(frozen=True)
class Comparison:
    """Features before and after: the largest relative difference, and what it was measured in.

    `precision` is float64 where float32 cannot hold the source's own features; `silent` are stages
    whose features are all zero, so that nothing could differ there.
    """

    difference: float
    precision: str
    silent: tuple[str, ...]


def compare_features(backbone: Backbone, loaded: nn.Module) -> Comparison:
    """Return how res2..res5 differ on a fixed random input.

    `loaded` is a model with the converted weights in `backbone.bottom_up`.

    Raises:
        ValueError: the source's own features are not finite.
    """
    images, expected = reference(backbone)
    network = loaded.get_submodule("backbone.bottom_up").to(images.dtype)
    with torch.no_grad():
        got = network(images)
    network.float()
    return Comparison(
        largest_difference(expected, got),
        str(images.dtype).removeprefix("torch."),
        tuple(stage for stage in STAGES if float(expected[stage].abs().max()) == 0),
    )
