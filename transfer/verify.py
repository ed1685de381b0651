"""Proof by numbers: the same features before and after conversion."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from transfer.checkpoints import Backbone
from transfer.resnet import BASIC, BLOCKS, COUNTER, Architecture

STAGES = ("res2", "res3", "res4", "res5")


def torchvision_network(architecture: Architecture) -> nn.Module:
    """Return torchvision's ResNet without weights, every layer wider where the stem is."""
    blocks = BLOCKS[architecture.base]
    kind: Any = BasicBlock if architecture.base in BASIC else Bottleneck
    planes, groups = architecture.res2 // kind.expansion, architecture.groups
    base_width = 64 if kind is BasicBlock else architecture.width * 64 // (groups * planes)
    with torch.device("meta"):
        network: Any = ResNet(kind, list(blocks), groups=groups, width_per_group=base_width)
        if (architecture.stem, planes) != (64, 64):
            network.inplanes = architecture.stem
            network.conv1 = nn.Conv2d(3, architecture.stem, 7, stride=2, padding=3, bias=False)
            network.bn1 = nn.BatchNorm2d(architecture.stem)
            for index, num in enumerate(blocks):
                layer = network._make_layer(kind, planes * 2**index, num, 2 if index else 1)
                setattr(network, f"layer{index + 1}", layer)
    if architecture.stride_in_1x1:
        for layer in (network.layer2, network.layer3, network.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return network  # type: ignore[no-any-return]


def torchvision_features(backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
    """Return res2..res5 of torchvision's ResNet with the source weights, `images [N, 3, H, W]`."""
    network: Any = torchvision_network(backbone.architecture)
    missing, unexpected = network.load_state_dict(backbone.state_dict, strict=False, assign=True)
    lacking = [n for n in missing if not n.startswith("fc.") and not n.endswith(COUNTER)]
    if lacking or unexpected:
        raise ValueError(f"torchvision's {backbone.arch} lacks {lacking}, ignores {unexpected}")
    del network.fc
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None
    network.eval().to(images.dtype)
    features = {}
    with torch.no_grad():
        out = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        for stage, layer in zip(
            STAGES, (network.layer1, network.layer2, network.layer3, network.layer4), strict=True
        ):
            out = layer(out)
            features[stage] = out
    return features


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

    Relative to the largest magnitude in each feature map; NaN if any converted feature is not
    finite. Both sides are computed in float64 where the source overflows float32: its weights are
    float32 all the same, so that a wrong entry differs no less. `loaded` is a model with the
    converted weights in `backbone.bottom_up`.

    Raises:
        ValueError: the source's own features are not finite.
    """
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    expected = torchvision_features(backbone, images)
    if not _finite(expected):
        images = images.double()
        expected = torchvision_features(backbone, images)
        if not _finite(expected):
            raise ValueError("the source's own features are NaN or infinite, in float64 too")
    network = loaded.get_submodule("backbone.bottom_up").to(images.dtype)
    with torch.no_grad():
        got = network(images)
    network.float()
    sizes = {stage: expected[stage].abs().max() for stage in STAGES}
    differences = [
        (expected[stage] - got[stage]).abs().max() / sizes[stage].clamp_min(1e-30)
        for stage in STAGES
    ]
    return Comparison(
        float(torch.stack(differences).max()),
        str(images.dtype).removeprefix("torch."),
        tuple(stage for stage in STAGES if float(sizes[stage]) == 0),
    )


def _finite(features: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(features[stage]).all()) for stage in STAGES)
