"""The file `backbone.pth`: written from an encoder, and read back by its tensors' shapes.

torchvision's own blocks, so every ResNet, ResNeXt and wide ResNet under torchvision's names is
built, also those that torchvision has no name for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from pretrain.config.pretrain import PretrainConfig
from pretrain.runtime.checkpoint import load_state, save_atomically
from pretrain.runtime.files import one_line

BACKBONE = "backbone.pth"
COUNTER = "num_batches_tracked"
NO_POOL = "small-no-pool"
CAFFE2_SUFFIX = "_stride_in_1x1"  # of the name of an architecture, as the converter writes it
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class InputConvention:
    """What a backbone expects: order of the channels, and mean and deviation of values 0-255."""

    format: str = "RGB"
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)


class Encoder(nn.Sequential):
    """A ResNet up to its average pooling: images [N, 3, H, W] to features [N, F]."""


def build_from(weights: Weights, *, stride_in_1x1: bool = False, maxpool: bool = True) -> Encoder:
    """Return the encoder that holds `weights`, in evaluation mode.

    What shapes do not tell: whether a stage halves its map in the first convolution of its first
    block (Caffe2) or in its 3x3, and whether there is a max-pooling behind a 3x3 stem.

    Raises:
        ValueError: they are not a complete ResNet under torchvision's names.
    """
    try:
        with torch.device("meta"):
            encoder = _empty(weights, stride_in_1x1, maxpool)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"not a ResNet under torchvision's names ({error!r})") from None
    encoder.to_empty(device="cpu")
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d) and module.num_batches_tracked is not None:
            module.num_batches_tracked.zero_()
    try:
        missing, unexpected = encoder.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"not a ResNet under torchvision's names: {one_line(error)[:300]}"
        ) from None
    missing = [name for name in missing if not name.endswith(COUNTER)]
    if missing or unexpected:
        raise ValueError(f"not a ResNet: lacks {missing[:3]}, has besides {unexpected[:3]}")
    return encoder.eval()


def _empty(weights: Weights, stride_in_1x1: bool, maxpool: bool) -> Encoder:
    channels, _, side, _ = weights["conv1.weight"].shape
    stride = 2 if side == 7 else 1
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, channels, side, stride=stride, padding=side // 2, bias=False),
        "bn1": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1) if maxpool else nn.Identity(),
    }
    for number in range(1, 5):
        blocks: list[nn.Module] = []
        while f"layer{number}.{len(blocks)}.conv1.weight" in weights:
            stride = 2 if number > 1 and not blocks else 1
            block = _block(weights, f"layer{number}.{len(blocks)}", stride)
            if stride_in_1x1 and stride == 2 and isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
            blocks.append(block)
        parts[f"layer{number}"] = nn.Sequential(*blocks)
    parts |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return Encoder(OrderedDict(parts))


def _block(weights: Weights, name: str, stride: int) -> BasicBlock | Bottleneck:
    width, inputs = weights[f"{name}.conv1.weight"].shape[:2]
    bottleneck = f"{name}.conv3.weight" in weights
    out = weights[f"{name}.conv3.weight"].shape[0] if bottleneck else width
    shortcut = None
    if f"{name}.downsample.0.weight" in weights:
        conv = nn.Conv2d(inputs, out, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))
    if not bottleneck:
        return BasicBlock(inputs, out, stride, shortcut)
    groups = width // weights[f"{name}.conv2.weight"].shape[1]
    base_width = width * 64 // (groups * (out // 4))  # torchvision: width = planes base/64 groups
    return Bottleneck(inputs, out // 4, stride, shortcut, groups, base_width)


def convention_of(stated: Any) -> InputConvention:
    """Return the convention that a file states.

    Raises:
        ValueError: it is not `{format: RGB or BGR, pixel_mean: [3], pixel_std: [3]}`.
    """
    try:
        mean, std = (tuple(map(float, stated[key])) for key in ("pixel_mean", "pixel_std"))
        if stated["format"] in ("RGB", "BGR") and len(mean) == len(std) == 3 and min(std) > 0:
            return InputConvention(stated["format"], mean, std)
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError("its `input` is not {format: RGB or BGR, pixel_mean: [3], pixel_std: [3]}")


def save_backbone(encoder: nn.Module, config: PretrainConfig, path: Path) -> None:
    """Write `backbone.pth`: torchvision's names without `fc`, its stem, and its input."""
    state = {name: value.detach().cpu().clone() for name, value in encoder.state_dict().items()}
    content = {
        "state_dict": state,
        "arch": config.model.arch,
        "stem": config.model.stem,
        "method": config.method,
        "input": {
            "format": "RGB",
            "pixel_mean": [round(255 * value, 6) for value in config.augment.mean],
            "pixel_std": [round(255 * value, 6) for value in config.augment.std],
        },
    }
    save_atomically(content, path)


def is_backbone_file(path: Path) -> bool:
    """Return whether the file looks like a `backbone.pth` of this project."""
    try:
        content = load_state(path) or {}
    except (ValueError, OSError):
        return False
    return {"state_dict", "arch", "method", "input"} <= content.keys()


def read_backbone_file(path: Path) -> tuple[Encoder, InputConvention]:
    """Return the encoder and the input convention of a `backbone.pth`.

    Raises:
        ValueError: the file is missing, damaged, or none of this project's.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted a backbone.pth")
    content = load_state(path) or {}
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or "input" not in content:
        raise ValueError(f"{path}: not a backbone.pth of this project (no state_dict and input)")
    try:
        encoder = build_from(
            weights,
            stride_in_1x1=str(content.get("arch")).endswith(CAFFE2_SUFFIX),
            maxpool=content.get("stem") != NO_POOL,
        )
        return encoder, convention_of(content["input"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
