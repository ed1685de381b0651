"""ResNets by torchvision's names without `fc`: shapes, names in detectron2, entries in a detector.

What detectron2 cannot build is refused with the reason. No torch is imported before values of
tensors are compared.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
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
PLACES = ("backbone.bottom_up.", "backbone.", "roi_heads.")  # of a backbone in a detector
# Parts of a detector that a backbone has not: their parameters start at random.
NEW_PARAMETERS = (
    "proposal_generator.",
    "backbone.fpn_lateral",
    "backbone.fpn_output",
    "roi_heads.res5.norm.",  # of Res5ROIHeadsExtraNorm
    "roi_heads.box_head.",
    "roi_heads.box_predictor.",
    "roi_heads.mask_head.",
)
FROM_CONFIG = ("pixel_mean", "pixel_std")
BASIC = ("resnet18", "resnet34")
SPELT_OTHERWISE = "names of a spelling of its own: docs/add-a-checkpoint-family.md"
BY_WIDTH = {
    (64, 64, 256, 1): "{}",
    (64, 128, 256, 1): "wide_{}_2",
    (64, 128, 256, 32): "{}_32x4d",
    (64, 256, 256, 32): "{}_32x8d",
    (64, 256, 256, 64): "{}_64x4d",
}
SELECTIVE = re.compile(r"\.(main_conv|mixing_conv|paths|selective\w*|sk\w*)(\.|$)")
CONVOLUTION = re.compile(r"conv\d\.(0\.)*weight$")
OTHER_NORMS = re.compile(r"\.(_mean|_variance|moving_mean|moving_var\w*|gamma|beta)$")
ATTENTION = re.compile(r"\.(se|se_module|attn|eca|cbam)\.")

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


@dataclass(frozen=True)
class Architecture:
    """Depth and widths, in detectron2's terms: channels of the stem, of res2's 3x3, of res2."""

    base: str
    stem: int = 64
    width: int = 64
    res2: int = 256
    groups: int = 1
    stride_in_1x1: bool = False

    @property
    def depth(self) -> int:
        """Number of layers, as in ResNet-50."""
        return DEPTHS[self.base]

    @property
    def name(self) -> str:
        """The name torchvision uses, or one with all widths in it where torchvision has none."""
        if self.base in BASIC:
            return self.base
        pattern = BY_WIDTH.get((self.stem, self.width, self.res2, self.groups))
        if pattern is None and (self.width, self.res2) == (self.stem, 4 * self.stem):
            pattern = "{}" + f"_x{self.stem / 64:g}"
        if pattern is None:
            pattern = "{}" + f"_{self.stem}_{self.width}_{self.res2}_g{self.groups}"
        resnext = self.groups > 1 and "x" in pattern
        return pattern.format(self.base.replace("resnet", "resnext") if resnext else self.base)

    def shape(self, name: str) -> Shape:
        """Return the shape that an entry of this architecture has."""
        parts = name.split(".")
        if parts[-1] == COUNTER:
            return ()
        if parts[0] in ("conv1", "bn1"):
            return (self.stem, 3, 7, 7) if parts[0] == "conv1" else (self.stem,)
        factor = 2 ** (int(parts[0].removeprefix("layer")) - 1)
        width, out = self.width * factor, self.res2 * factor
        before = out if parts[1] != "0" else (self.stem if factor == 1 else out // 2)
        if parts[2] == "downsample":
            return (out, before, 1, 1) if parts[3] == "0" else (out,)
        index = int(parts[2][-1])
        basic = self.base in BASIC
        channels = out if index == (2 if basic else 3) else width
        if parts[2].startswith("bn"):
            return (channels,)
        inputs = before if index == 1 else width // (self.groups if index == 2 else 1)
        return (channels, inputs, *((3, 3) if basic or index == 2 else (1, 1)))

    def detectron2_keys(self) -> dict[str, Any]:
        """Return the MODEL.RESNETS keys that build it; widths where they are not the default."""
        keys: dict[str, Any] = {
            "MODEL.RESNETS.DEPTH": self.depth,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": self.res2,
            "MODEL.RESNETS.STRIDE_IN_1X1": self.stride_in_1x1,
        }
        widths = {
            "MODEL.RESNETS.STEM_OUT_CHANNELS": (self.stem, 64),
            "MODEL.RESNETS.NUM_GROUPS": (self.groups, 1),
            "MODEL.RESNETS.WIDTH_PER_GROUP": (self.width // self.groups, 64),
        }
        return keys | {key: value for key, (value, default) in widths.items() if value != default}


def is_complete(names: Iterable[str]) -> bool:
    """Return whether every name of a ResNet is among them, counters of batches aside."""
    return any(expected_names(arch, counters=False) <= set(names) for arch in BLOCKS)


def recognise(shapes: Mapping[str, Shape], extra: Sequence[str] = ()) -> Architecture:
    """Return the architecture of a complete set of entries; `extra` are names beside them.

    Raises:
        ValueError: it is none that detectron2 builds, with the reason.
    """
    reason = foreign(shapes, extra)
    if reason is not None:
        raise ValueError(reason)
    base = nearest(shapes)
    names = expected_names(base)
    names -= {name for name in names if name.endswith(COUNTER)} - set(shapes)  # no part of it
    missing, more = sorted(names - set(shapes)), sorted({*extra, *(set(shapes) - names)})
    if missing or more:
        hint = f"; {SPELT_OTHERWISE}" if missing and more else ""
        raise ValueError(
            f"not a complete torchvision ResNet; nearest is {base}: "
            f"{len(missing)} missing {missing[:3]}, {len(more)} extra {more[:3]}{hint}"
        )
    _check_ranks(names, shapes)
    built = widths(base, shapes)
    for name in sorted(names):
        shape = built.shape(name)
        if shapes[name] != shape and not (shape == () and shapes[name] == (1,)):
            raise ValueError(f"{name} has shape {shapes[name]}, wanted {shape} for {built.name}")
    if base in BASIC and (built.stem, built.res2) != (64, 64):
        raise ValueError(
            f"a {base} of {built.stem} channels in the stem and {built.res2} in res2; detectron2 "
            "builds it with 64 only"
        )
    # torchvision's rule for the widths of a bottleneck
    planes, groups = built.res2 // 4, built.groups
    base_width = built.width * 64 // (groups * planes) if planes else 0
    even = built.res2 % 4 == 0 and int(planes * (base_width / 64)) * groups == built.width
    if base not in BASIC and not even:
        raise ValueError(
            f"odd widths: stem {built.stem}, 3x3 {built.width} in {built.groups} groups, res2 "
            f"{built.res2}; torchvision builds no such network to compare with"
        )
    return built


def _check_ranks(names: Iterable[str], shapes: Mapping[str, Shape]) -> None:
    """Raise ValueError for an entry without elements, or of another number of dimensions."""
    for name in sorted(names):
        if name.endswith(COUNTER):
            continue
        rank = 4 if re.search(r"(conv\d|downsample\.0)\.weight$", name) else 1
        if len(shapes[name]) != rank or 0 in shapes[name]:
            raise ValueError(
                f"{name} has shape {shapes[name]}, wanted {rank} dimensions and no empty one"
            )


def widths(base: str, shapes: Mapping[str, Shape]) -> Architecture:
    """Return the architecture that stem and first block imply."""
    stem = shapes["conv1.weight"][0]
    first = shapes["layer1.0.conv1.weight"]
    if base in BASIC:
        return Architecture(base, stem, first[0], first[0])
    middle, last = shapes["layer1.0.conv2.weight"], shapes["layer1.0.conv3.weight"]
    sound = all(len(shape) == 4 for shape in (first, middle, last)) and middle[1] > 0
    groups = middle[0] // middle[1] if sound and middle[0] % middle[1] == 0 else 1
    return Architecture(base, stem, middle[0], last[0], max(groups, 1))


def nearest(shapes: Mapping[str, Shape]) -> str:
    """Return the architecture with the fewest missing and extra entries."""
    names = {name for name in shapes if not name.endswith(COUNTER)}
    return min(BLOCKS, key=lambda arch: len(expected_names(arch, counters=False) ^ names))


def foreign(shapes: Mapping[str, Shape], extra: Sequence[str]) -> str | None:
    """Return why a network is of a kind that detectron2's ResNet cannot be, or None."""
    names = [*shapes, *extra]
    norms = [name for name in shapes if re.search(r"bn\d\.weight$", name)]
    if any(SELECTIVE.search(name) for name in names):
        return "it has selective kernels (SK-ResNet), which detectron2's ResNet has not"
    if any(ATTENTION.search(name) for name in names):
        return "it has attention units (squeeze-excitation or alike), detectron2's ResNet has none"
    other = other_norms(names)
    if other is not None:
        return other
    ranks = {len(shape) for name, shape in shapes.items() if CONVOLUTION.search(name)}
    if 5 in ranks or 3 in ranks:
        kind = "3-D ResNet (video, volumes)" if 5 in ranks else "1-D ResNet (audio, signals)"
        return f"it is a {kind}; detectron2 builds those of pictures"
    reason = _stem(shapes, names) or _shortcut(shapes, names)
    if reason is None and norms and not any(name.endswith("running_mean") for name in shapes):
        return "it has no running statistics: GroupNorm or alike in place of BatchNorm"
    return reason or _depth(shapes)


def other_norms(names: Iterable[str]) -> str | None:
    """Return which names of norms are another framework's, and what to do; None where none is."""
    other = next((name for name in names if OTHER_NORMS.search(name)), None)
    if other is None:
        return None
    return (
        f"its norms have other names ({other}), as PaddlePaddle, MindSpore and Keras give them: "
        "rename them to weight, bias, running_mean, running_var"
    )


def _stem(shapes: Mapping[str, Shape], names: Sequence[str]) -> str | None:
    if any(re.match(r"(conv1\.\d|conv[2-9]\.|stem\.|stem\d)", name) for name in names):
        return "it has a deep stem of several convolutions; detectron2 builds the 7x7 stem only"
    stem = shapes.get("conv1.weight")
    if stem is None or len(stem) != 4:
        return None
    if stem[1] != 3:
        kinds = {1: "gray or Lab lightness", 2: "Lab colour or Sobel edges", 4: "RGB with a mask"}
        kind = kinds.get(stem[1], "unknown")
        return f"its input has {stem[1]} channels ({kind}), detectron2 gives it 3"
    if stem[2:] == (3, 3):
        return "it has a 3x3 stem for small images (CIFAR, STL-10, Tiny ImageNet), wanted 7x7"
    if stem[2:] != (7, 7):
        return f"it has a {stem[2]}x{stem[3]} stem, wanted 7x7"
    return None


def _shortcut(shapes: Mapping[str, Shape], names: Sequence[str]) -> str | None:
    for name in names:
        if re.search(r"downsample\.[2-9]\.", name) or (
            name.endswith("downsample.1.weight") and len(shapes.get(name, ())) == 4
        ):
            return f"it has average-pool shortcuts (ResNet-D, {name}), detectron2's has none"
        if re.search(r"\.shortcut\.\d\.", name):
            return "it is lightly's own ResNet (3x3 stem, no max-pool), made for small images"
    return None


def _depth(shapes: Mapping[str, Shape]) -> str | None:
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        match = re.match(r"layer(\d+)\.(\d+)\.", name)
        if match is not None:
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    counts = tuple(len(blocks[stage]) for stage in sorted(blocks))
    dense = all(max(indices) + 1 == len(indices) for indices in blocks.values())
    if counts == (3, 24, 36, 3):
        return "it is a ResNet-200 (3-24-36-3 blocks), deeper than detectron2 builds"
    bottleneck = any(".conv3." in name for name in shapes)
    known = {BLOCKS[arch] for arch in BLOCKS if (arch not in BASIC) == bottleneck}
    if dense and len(counts) == 4 and counts not in known:
        nearly = any(
            sum(abs(a - b) for a, b in zip(counts, others, strict=True)) == 1 for others in known
        )
        if not nearly:
            kind, layers = ("bottleneck", 3) if bottleneck else ("basic", 2)
            return (
                f"its stages have {'-'.join(map(str, counts))} {kind} blocks (a ResNet-"
                f"{layers * sum(counts) + 2}), no depth of detectron2's"
            )
    return None


def not_loaded(model: nn.Module, weights: Mapping[str, Any]) -> list[str]:
    """Return what the file has and the model lacks, and what the model has that is not in it."""
    counted = any(name.endswith(COUNTER) for name in weights)
    names = {
        next((name.removeprefix(place) for place in PLACES if name.startswith(place)), "")
        for name in model.state_dict()
    }
    body = {name for name in names if name.startswith(("stem.", "res"))}
    unfilled = {name for name in body - set(weights) if counted or not name.endswith(COUNTER)}
    return lost_entries(model, weights) + sorted(unfilled)


def lost_entries(model: nn.Module, weights: Mapping[str, Any]) -> list[str]:
    """Return the names in `weights` that `model` does not hold, value for value."""
    import torch  # noqa: PLC0415  (names and shapes need no torch)

    state = model.state_dict()
    lost = []
    for name, value in weights.items():
        there = [state[place + name] for place in PLACES if place + name in state]
        frozen_counter = name.endswith(COUNTER) and not there
        if not frozen_counter and not any(
            torch.equal(tensor.cpu(), torch.as_tensor(value)) for tensor in there
        ):
            lost.append(name)
    return lost


def unfilled_fault(
    state: Iterable[str], lost: Sequence[str], names: Collection[str], *, whole: bool = False
) -> str | None:
    """Return which entries of a file are lost, or which parameters it leaves random; None if none.

    Args:
        state: the names of all that the model holds.
        lost: entries of the file that the model does not hold.
        names: what the file fills, by the model's names.
        whole: heads have to be filled too.
    """
    if lost:
        return f"{len(lost)} entries were not loaded: {', '.join(lost)}"
    allowed = FROM_CONFIG if whole else (*FROM_CONFIG, *NEW_PARAMETERS)
    random = [name for name in state if name not in names and not name.startswith(allowed)]
    if not any(name.endswith(COUNTER) for name in names):
        random = [name for name in random if not name.endswith(COUNTER)]
    if not random:
        return None
    return (
        f"has nothing for {len(random)} parameters: {', '.join(random)}; only "
        f"{'' if whole else ', '.join(NEW_PARAMETERS) + ' and '}{', '.join(FROM_CONFIG)} "
        "may start without it"
    )
