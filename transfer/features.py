"""The features that conversions and exports are compared with: torchvision's of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
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


def reference(backbone: Backbone) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a fixed random input, and what torchvision's network computes of it.

    Both are float64 where float32 cannot hold the features: weights are float32 all the same, so
    that a wrong entry differs no less.

    Raises:
        ValueError: the features are not finite.
    """
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    for one in (images, images.double()):
        expected = torchvision_features(backbone, one)
        if all(bool(torch.isfinite(expected[stage]).all()) for stage in STAGES):
            return one, expected
    raise ValueError("the source's own features are NaN or infinite, in float64 too")


def largest_difference(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any stage, relative to its largest magnitude.

    NaN if a feature of `got` is not finite.
    """
    differences = [
        (expected[stage] - got[stage]).abs().max() / expected[stage].abs().max().clamp_min(1e-30)
        for stage in STAGES
    ]
    return float(torch.stack(differences).max())


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
