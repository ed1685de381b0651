"""Names of ResNet tensors: torchvision's complete sets, and detectron2's names for them."""

from __future__ import annotations

import re

BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
DEPTHS = {arch: int(arch.removeprefix("resnet")) for arch in BLOCKS}
COUNTER = "num_batches_tracked"
NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var", COUNTER)

_RULES: tuple[tuple[str, str], ...] = (
    (r"conv1\.weight", r"stem.conv1.weight"),
    (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.weight", r"res{stage}.\2.conv\3.weight"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", r"res{stage}.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.weight", r"res{stage}.\2.shortcut.weight"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", r"res{stage}.\2.shortcut.norm.\3"),
)


def to_detectron2(name: str) -> str:
    """Return detectron2's name of a torchvision ResNet entry (`layer1` becomes `res2`).

    Raises:
        ValueError: the name belongs to no part of a ResNet backbone.
    """
    for pattern, replacement in _RULES:
        match = re.fullmatch(pattern, name)
        if match is not None:
            stage = int(match[1]) + 1 if "{stage}" in replacement else None
            return match.expand(replacement.format(stage=stage))
    raise ValueError(f"{name}: no such entry in torchvision's ResNet backbone")


def ordered_names(arch: str) -> list[str]:
    """Return torchvision's entry names of a ResNet without `fc`, in torchvision's order."""
    num_convs = 2 if arch in ("resnet18", "resnet34") else 3
    names = ["conv1.weight", *_norm("bn1")]
    for stage, num_blocks in enumerate(BLOCKS[arch], start=1):
        for block in range(num_blocks):
            prefix = f"layer{stage}.{block}"
            for conv in range(1, num_convs + 1):
                names += [f"{prefix}.conv{conv}.weight", *_norm(f"{prefix}.bn{conv}")]
            if block == 0 and not (stage == 1 and num_convs == 2):
                names += [f"{prefix}.downsample.0.weight", *_norm(f"{prefix}.downsample.1")]
    return names


def expected_names(arch: str, counters: bool = True) -> set[str]:
    """Return torchvision's entry names of a ResNet without `fc`, with or without counters."""
    return {name for name in ordered_names(arch) if counters or not name.endswith(COUNTER)}


def _norm(prefix: str) -> list[str]:
    return [f"{prefix}.{entry}" for entry in NORM_ENTRIES]
