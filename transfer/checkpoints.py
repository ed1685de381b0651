"""Read a backbone out of a checkpoint file, without executing anything in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transfer.keymap import expected_names, recognise_arch

IMAGENET_INPUT: dict[str, Any] = {
    "format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
}
CONTAINERS = ("state_dict", "model")
FORMATS = ("whitening-transfer", "torchvision")


@dataclass(frozen=True)
class Backbone:
    """A ResNet under torchvision's names without `fc`, and how its input is normalised (0-255)."""

    state_dict: dict[str, Tensor]
    arch: str
    format: str
    encoder: str = ""
    input: dict[str, Any] = field(default_factory=lambda: dict(IMAGENET_INPUT))


def read_backbone(path: Path, *, format: str | None = None, encoder: str | None = None) -> Backbone:
    """Return the backbone in `path`.

    Known are this project's `backbone.pth` and files with torchvision's names, bare or under
    `state_dict` or `model`; `encoder` names a prefix to look under, such as `module.encoder_q.`.

    Raises:
        ValueError: the file cannot be read safely, or holds no complete ResNet backbone.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    content = _load(path)
    own = "arch" in content and "input" in content and "state_dict" in content
    if format == "whitening-transfer" and not own:
        raise ValueError(f"{path}: not a backbone.pth of this project (no arch and input in it)")
    tensors = _tensors(path, content)
    prefix = encoder or ""
    state = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and not name.removeprefix(prefix).startswith("fc.")
    }
    arch = recognise_arch(state)
    if arch is None:
        raise ValueError(f"{path}: {_why_not(state, tensors)}")
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"{path}: {len(broken)} tensors hold NaN or infinity, first {broken[0]}")
    if own and format != "torchvision":
        return Backbone(state, arch, "whitening-transfer", prefix, dict(content["input"]))
    return Backbone(state, arch, "torchvision", prefix)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (the restricted unpickler raises many types)
        first_line = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: not a checkpoint that can be read safely ({first_line})"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, wanted a state dict")
    return content


def _tensors(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    for key in CONTAINERS:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: no tensors in it; keys: {', '.join(map(str, content))[:200]}")
    return tensors


def _why_not(state: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """Say what keeps `state` from being a complete ResNet."""
    if "conv1.weight" not in state:
        prefixes = Counter(name[: -len("conv1.weight")] for name in tensors
                           if name.endswith(".conv1.weight") and "layer" not in name)  # fmt: skip
        found = ", ".join(sorted(prefixes)) or "none"
        return f"no conv1.weight among {len(tensors)} tensors; prefixes that have one: {found}"
    names = set(state)
    best = min(
        ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        key=lambda arch: len(expected_names(arch, counters=False) ^ names),
    )
    missing = sorted(expected_names(best, counters=False) - names)
    extra = sorted(names - expected_names(best))
    return (
        f"not a complete torchvision ResNet; nearest is {best}: "
        f"{len(missing)} missing {missing[:3]}, {len(extra)} extra {extra[:3]}"
    )
