"""Proof by numbers: the same features before and after conversion, and every entry loaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import Tensor, nn

from transfer.checkpoints import Backbone
from transfer.keymap import detectron2_keys

STAGES = ("res2", "res3", "res4", "res5")


def torchvision_features(backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
    """Return res2..res5 of torchvision's ResNet with the source weights, `images [N, 3, H, W]`."""
    network = torchvision.models.get_model(backbone.arch, weights=None)
    missing, unexpected = network.load_state_dict(backbone.state_dict, strict=False)
    strangers = [name for name in missing if not name.startswith("fc.")
                 and not name.endswith("num_batches_tracked")]  # fmt: skip
    if strangers or unexpected:
        raise ValueError(f"torchvision's {backbone.arch} lacks {strangers}, ignores {unexpected}")
    network.eval()
    features = {}
    with torch.no_grad():
        out = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        for stage, layer in zip(
            STAGES, (network.layer1, network.layer2, network.layer3, network.layer4), strict=True
        ):
            out = layer(out)
            features[stage] = out
    return features


def detectron2_features(backbone: Backbone, weights: Path, images: Tensor) -> dict[str, Tensor]:
    """Return res2..res5 of detectron2's ResNet with the converted file read by its own loader."""
    cfg = get_cfg()
    for key, value in detectron2_keys(backbone.arch, backbone.input).items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    network = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    DetectionCheckpointer(network).load(str(weights))
    network.eval()
    with torch.no_grad():
        features: dict[str, Tensor] = network(images)
    return features


def largest_feature_difference(backbone: Backbone, weights: Path) -> float:
    """Return the largest relative difference of res2..res5 on a fixed random input.

    Relative to the largest magnitude in each feature map; NaN if any feature is not finite.
    """
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    wanted = torchvision_features(backbone, images)
    got = detectron2_features(backbone, weights, images)
    differences = [
        ((wanted[stage] - got[stage]).abs().max() / wanted[stage].abs().max()) for stage in STAGES
    ]
    return float(torch.stack(differences).max())


def missing_entries(model: nn.Module, weights: Path) -> list[str]:
    """Return the entries of a converted file that `model` does not hold, value for value."""
    with weights.open("rb") as file:
        wanted = pickle.load(file)["model"]
    state = model.state_dict()
    lost = []
    for name, value in wanted.items():
        places = (f"backbone.bottom_up.{name}", f"backbone.{name}", f"roi_heads.{name}")
        found = [state[place] for place in places if place in state]
        frozen_counter = name.endswith("num_batches_tracked") and not found
        if not frozen_counter and not any(
            torch.equal(tensor.cpu(), torch.as_tensor(value)) for tensor in found
        ):
            lost.append(name)
    return lost
