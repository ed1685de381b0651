"""Statements of a file on its own network and input, beside its tensors' names and shapes.

Two networks can have the same tensors and other features: another place of the stride, blur,
dilation, another activation, pixels in another order or scale. Where a file says so it is heard; a
network that detectron2 does not build is refused by the name that the file gives it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transfer.checkpoints.settings import Group, plain
from transfer.checkpoints.state_dicts import StateDict, TensorView, as_tensor
from transfer.resnet import Architecture

NAMES = (
    "arch", "architecture", "arch_name", "model", "model_name", "model_arch", "backbone",
    "backbone_name", "backbone_arch", "base_model", "base_arch", "base_encoder", "encoder",
    "encoder_name", "encoder_arch", "net", "network", "network_name", "net_type", "cnn",
    "feature_extractor", "trunk", "resnet",
)  # fmt: skip
PLAIN_NAME = re.compile(r"(wide)?resnex?t(v1b?)?(?P<depth>18|34|50|101|152)?([xw][1-9]|v1b?)?")
NEARLY = re.compile(r"resne[xs]?t|res2ne|resnest")
DILATED = re.compile(r"deeplab\w*|fcn|pspnet|psp|dilated|atrous|os8|os16|danet|encnet|lraspp|drn")
VARIANTS = re.compile(
    r"aa|anti|antialias(ed)?|blur(pool)?|lpf\d?|ibn|gn|groupnorm|ln|frn|evonorm|evos|evob|ws|bit|nf|"
    r"se|sk|eca|cbam|bam|gc|ge|srm|dcn(v\d)?|deform(able)?|v1[cdes]|preact(ivation)?|clip|frelu|"
    r"swish|silu|gelu|leaky|elu|mish|prelu|rs|deepstem|quant(ized|ised)?|int8|binary|3d|2plus1d|"
    r"spiking|bnn|octave|fixup|weightnorm|instancenorm"
)
LETTERS = ("a", "c", "d", "e", "q", "s", "t", "ts", "v2", "v3")  # behind the depth only
OTHERS = re.compile(
    r"(vit|deit|swin|beit|convnext|regnet|efficientnet|densenet|vgg|mobilenet|inception|dla|bagnet|"
    r"hrnet|drn|senet|sknet|xception|nfnet|mixer|dpn|botnet|cspnet|shufflenet|alexnet|googlenet|"
    r"squeezenet|halonet|lambdanet|rexnet|repvgg|darknet|hourglass)[\w.-]*"
)
BEFORE = ("", "image_", "pixel_", "img_", "norm_", "normalize_", "rgb_", "input_", "data_")
ORDERS = {"to_rgb": ("RGB", "BGR"), "bgr_to_rgb": ("RGB", "BGR"), "rgb_to_bgr": ("BGR", "RGB")}
SPACES = ("channel_order", "input_space", "color_order", "input_order", "input_format", "format")
SPREADS = {"mean": ("std", "stdv", "sd"), "means": ("stds", "sds"), "mu": ("sigma", "std", "sd")}
CENTRE = re.compile(r"(?P<stem>(?:.*\.)?(?:\w*_)?)(?P<what>means?|mu)")
NORMALISATION = re.compile(r"(.*\.)?(\w*_)?(means?|mu|stds?|stdv|sds?|sigma)")
BLUE_FIRST = (103.53, 116.28, 123.675)
ATROUS_HEAD = re.compile(
    r"(.*\.)?(classifier|decoder|decode_head|head)\.(.*\.)?(aspp\w*|convs\.\d+\.\d)\..*"
)
FCN_HEAD = "classifier.4.weight"  # torchvision's, a convolution over a dilated network's map
EPS = 1e-5
MAX_SHOWN = 60


@dataclass
class Statement:
    """What a file says, None where it is silent; mean and std are of pixels from 0 to 255.

    `warnings` are of what it says that is not used, or that detectron2 does otherwise.
    """

    order: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    stride_in_1x1: bool | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def statement_of(groups: list[Group], tensors: StateDict, architecture: Architecture) -> Statement:
    """Return what a file says of its network and input.

    Args:
        groups: its settings, as `settings.groups_of` returns them.
        tensors: the dict that holds the encoder: a layer of it may be the normalisation.
        architecture: what names and shapes say.

    Raises:
        ValueError: it says that it is a network that detectron2 does not build.
    """
    statement = Statement()
    for name, view in tensors.items():
        if ATROUS_HEAD.fullmatch(name) or (name.endswith(FCN_HEAD) and len(view.shape) == 4):
            raise ValueError(_dilated(f"{name} is of a DeepLab or FCN head"))
    _names(groups, architecture, statement)
    strides: dict[bool, str] = {}
    for path, group in groups:
        where = ".".join(path)
        _refuse_dilated(where, group, _of_backbone(path, group))
        _refuse_other_layers(where, group, _of_backbone(path, group))
        _note_eps(where, group, statement)
        for stride in _strides(group, _of_backbone(path, group)):
            strides.setdefault(stride, where)
    if len(strides) == 1 and architecture.depth >= 50:
        ((statement.stride_in_1x1, where),) = strides.items()
        if statement.stride_in_1x1:
            statement.notes.append(f"{where or 'the file'} says: stride in the 1x1 convolution")
    elif len(strides) > 1:
        places = " and ".join(strides.values())[:MAX_SHOWN]
        statement.warnings.append(f"{places} differ in the place of the stride: not used")
    _input(groups, tensors, statement)
    statement.warnings += [
        f"{name.removesuffix('.running_var')[:MAX_SHOWN]} is a BatchNorm of three channels, of "
        "the input: not used"
        for name, view in tensors.items()
        if name.endswith(".running_var") and view.shape == (3,)
    ]
    statement.notes = list(dict.fromkeys(statement.notes))
    statement.warnings = list(dict.fromkeys(statement.warnings))
    return statement


def _names(groups: list[Group], architecture: Architecture, statement: Statement) -> None:
    """Note names of other depths than the weights'; refuse those of other networks."""
    kinds = [(where, name, *kind_of_network(name)) for where, name in _named(groups)]
    for where, name, kind, depth in kinds:
        shown = name[:MAX_SHOWN]
        if kind == "dilated":
            raise ValueError(_dilated(f"{where} is {shown}"))
        if kind == "variant":
            raise ValueError(
                f"{where} says that it is {shown}: no plain ResNet, though its tensors have the "
                "same names; detectron2 builds no such network"
            )
        if kind == "unknown":
            continue
        if re.search(r"caffe|msra", name.lower()):
            statement.warnings.append(
                f"{where} is {shown}: Caffe's networks often take BGR, std 1 and the stride in the "
                "1x1; not assumed, state it by hand"
            )
        grouped = "resnext" in name.lower().replace("_", "")
        narrow = "wide" in name.lower() and architecture.width == architecture.stem
        if (
            depth not in (None, architecture.depth)
            or narrow
            or grouped != (architecture.groups > 1)
        ):
            statement.warnings.append(
                f"{where} says {shown}, its weights are {architecture.name}'s: not used"
            )
    for where, name, _, _ in kinds:
        if OTHERS.fullmatch(name.lower()) and all(kind == "unknown" for _, _, kind, _ in kinds):
            raise ValueError(f"{where} says that it is {name[:MAX_SHOWN]}, no ResNet")


def _named(groups: list[Group]) -> list[tuple[str, str]]:
    """Return every text that may name the network, and where it stands."""
    named: list[tuple[str, str]] = []
    for path, group in groups:
        for key in NAMES:
            if isinstance(group.get(key), str):
                named.append((".".join((*path, key)), group[key]))
        if path and path[-1].lower() in NAMES and isinstance(group.get("name"), str):
            named.append((".".join((*path, "name")), group["name"]))
        kind = group.get("type")
        if isinstance(kind, str) and "resne" in kind.lower():
            depth = group.get("depth")
            name = kind.split(".")[-1] + (str(depth) if isinstance(depth, int) else "")
            named.append((".".join((*path, "type")), name))
    return named


def kind_of_network(name: str) -> tuple[str, int | None]:
    """Return `plain`, `variant` (other layers of the same tensors), `dilated` or `unknown`; depth.

    >>> kind_of_network("timm/resnet50.a1_in1k"), kind_of_network("resnetblur50")
    (('plain', 50), ('variant', None))
    """
    last = re.split(r"[/:]", name.lower())[-1]
    last = next((part for part in last.split(".") if "res" in part), last)
    tokens = [token for token in re.split(r"[^a-z0-9]+", last) if token]
    if not any(NEARLY.search(token) for token in tokens):
        return "unknown", None
    if any(DILATED.fullmatch(token) for token in tokens):
        return "dilated", None
    depth = None
    for index, token in enumerate(tokens):
        match = PLAIN_NAME.fullmatch(token)
        if match is None and (NEARLY.search(token) or VARIANTS.fullmatch(token)):
            return "variant", None
        if match is None:
            continue
        behind = index + 1
        if match["depth"] is None and behind < len(tokens) and tokens[behind].isdigit():
            depth, behind = int(tokens[behind]), behind + 1
        elif match["depth"]:
            depth = int(match["depth"])
        if behind < len(tokens) and tokens[behind] in LETTERS:
            return "variant", None
    return "plain", depth


def _of_backbone(path: tuple[str, ...], group: Mapping[str, Any]) -> bool:
    """Return whether settings are those of a ResNet, not of a head or the data."""
    kinds = [group.get(key) for key in ("type", "model_type", "name")]
    named = any(isinstance(kind, str) and "resne" in kind.lower() for kind in kinds)
    return named or (bool(path) and path[-1].lower() in ("backbone", "config.json"))


def _dilated(reason: str) -> str:
    return (
        f"{reason}: a dilated network, its features are not those of detectron2's ResNet; save the "
        "state_dict of its backbone alone to take the weights undilated"
    )


def _said(where: str, key: str, group: Mapping[str, Any]) -> str:
    return f"{'.'.join(filter(None, (where, key)))} is {str(group[key])[:MAX_SHOWN]}"


def _refuse_dilated(where: str, group: Mapping[str, Any], of_backbone: bool) -> None:
    """Raise ValueError where settings say that stages are dilated."""
    for key in ("output_stride", "encoder_output_stride"):
        if group.get(key) in (4, 8, 16) and not isinstance(group[key], bool):
            raise ValueError(_dilated(_said(where, key, group)))
    swapped = group.get("replace_stride_with_dilation")
    if isinstance(swapped, list | tuple) and any(part is True or part == 1 for part in swapped):
        raise ValueError(_dilated(_said(where, "replace_stride_with_dilation", group)))
    if group.get("dilation") is True:
        raise ValueError(_dilated(_said(where, "dilation", group)))
    for key in ("res5_dilation", *(("dilations", "dilation") if of_backbone else ())):
        value = group.get(key)
        steps = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(step, int) and step > 1 for step in steps):
            raise ValueError(_dilated(_said(where, key, group)))


def _refuse_other_layers(where: str, group: Mapping[str, Any], of_backbone: bool) -> None:
    """Raise ValueError where settings name layers without tensors that detectron2 has not."""
    strides = group.get("strides")
    if of_backbone and isinstance(strides, list | tuple) and list(strides) != [1, 2, 2, 2]:
        raise ValueError(f"{_said(where, 'strides', group)}, detectron2's ResNet has 1, 2, 2, 2")
    for key in ("act_layer", *(("hidden_act", "act_cfg", "activation") if of_backbone else ())):
        value = plain(group.get(key))
        value = value.get("type") if isinstance(value, Mapping) else value
        if isinstance(value, str) and value.lower() not in ("relu", "", "none"):
            raise ValueError(f"{_said(where, key, group)}, detectron2's ResNet has ReLU")
    for key, other, there in (
        ("aa_layer", None, "is not anti-aliased"),
        ("downsample_in_first_stage", True, "res2 has stride 1"),
        ("maxpool1", False, "stem has a max-pool"),
    ):
        if group.get(key) is other if other is not None else group.get(key):
            raise ValueError(f"{_said(where, key, group)}, detectron2's {there}")


def _strides(group: Mapping[str, Any], of_backbone: bool) -> list[bool]:
    """Return where settings place the stride of a bottleneck: True is the 1x1 convolution."""
    said = [group.get(key) for key in ("stride_in_1x1", "downsample_in_bottleneck")]
    if of_backbone and group.get("style") in ("caffe", "pytorch"):
        said.append(group["style"] == "caffe")
    return [value for value in said if isinstance(value, bool)]


def _note_eps(where: str, group: Mapping[str, Any], statement: Statement) -> None:
    norm = plain(group.get("norm_cfg"))
    inner = norm.get("eps") if isinstance(norm, Mapping) else None
    said = [(key, group.get(key)) for key in ("bn_eps", "batch_norm_eps")]
    for key, eps in (*said, ("norm_cfg.eps", inner)):
        if isinstance(eps, float) and eps != EPS:
            place = ".".join(filter(None, (where, key)))
            statement.warnings.append(
                f"{place} says BatchNorm eps {eps:g}, detectron2's is 1e-05: features differ where "
                "variances are small"
            )


@dataclass(frozen=True)
class _Input:
    """One place's order, mean and std; lower ranks are nearer to the network."""

    rank: int
    where: str
    order: str | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def _input(groups: list[Group], tensors: StateDict, statement: Statement) -> None:
    """Take order, mean and std from the nearest place to the network that says them."""
    said = _layers(tensors)
    for path, group in groups:
        said += _not_normalised(path, group) or _stated(path, group, statement)
    for what in ("order", "mean"):
        places = [one for one in said if getattr(one, what) is not None]
        nearest = [one for one in places if one.rank == min(other.rank for other in places)]
        if not nearest:
            continue
        one = nearest[0]
        values = {other.order if what == "order" else (other.mean, other.std) for other in nearest}
        if len(values) > 1:
            shown = " and ".join(dict.fromkeys(other.where for other in nearest))[:MAX_SHOWN]
            why = f"{shown} differ in {what}, so none is used: state it by hand"
            statement.warnings.append(why)
        elif what == "order":
            statement.order = one.order
            statement.notes.append(f"{one.where} says: {one.order}")
        elif one.mean is not None and one.std is not None:
            statement.mean, statement.std = list(one.mean), list(one.std)
            blue = max(abs(a - b) for a, b in zip(one.mean, BLUE_FIRST, strict=True)) < 1
            if statement.order is None and blue:
                statement.order = "BGR"
            numbers = f"mean {_shown(one.mean)}, std {_shown(one.std)}"
            statement.notes.append(f"{one.where} says: {numbers}, of pixels from 0 to 255")


def _shown(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _layers(tensors: StateDict) -> list[_Input]:
    """Return the layers that normalise the input: a mean and a std of three numbers each."""
    said = []
    for name in tensors:
        match = CENTRE.fullmatch(name)
        if match is None:
            continue
        beside = (tensors.get(match["stem"] + word) for word in SPREADS[match["what"]])
        scale = next(filter(None, map(_numbers, beside)), None)
        mean = _numbers(tensors[name])
        if mean is not None and scale is not None and min(scale) > 0:
            unit = max(map(abs, mean)) <= 1 and max(scale) <= 1
            pixels = [255.0 if unit else 1.0] * 3
            said.append(_Input(0, f"its layer {name.rpartition('.')[0] or name}", None,
                               _times(mean, pixels), _times(scale, pixels)))  # fmt: skip
    return said


def is_normalisation(name: str, view: TensorView) -> bool:
    """Return whether a tensor is the mean or std of a layer that normalises the input."""
    return NORMALISATION.fullmatch(name) is not None and math.prod(view.shape) == 3


def _stated(path: tuple[str, ...], group: Mapping[str, Any], statement: Statement) -> list[_Input]:
    """Return what one group of settings says of order, mean and std."""
    where, last = ".".join(path) or "the file", path[-1].lower() if path else ""
    order = None
    for key, words in ORDERS.items():
        if isinstance(group.get(key), bool) and (key != "rgb_to_bgr" or group[key]):
            order = words[not group[key]]
    openmmlab = order is not None or last in ("img_norm_cfg", "data_preprocessor")
    for key in SPACES:
        value = group.get(key)
        if isinstance(value, str) and value.upper() in ("RGB", "BGR"):
            order = value.upper()
    rank = 1 if openmmlab else 2
    for mean_key, std_key in ((f"{word}mean", f"{word}std") for word in BEFORE):
        mean, std = _numbers(group.get(mean_key)), _numbers(group.get(std_key))
        if mean is None and std is None:
            continue
        if mean is None or std is None or min(std) <= 0:
            alone = f"{where} says {mean_key if mean else std_key} alone: not used"
            statement.warnings.append(alone)
            continue
        if order is None and last == "data_preprocessor":
            order = "BGR"  # OpenMMLab's images are, unless they are turned
        elif order is None and openmmlab:
            order = "RGB"
        reach = group.get("input_range")
        full = isinstance(reach, list | tuple) and bool(reach) and reach[-1] == 255
        unit = not openmmlab and not full and max(map(abs, mean)) <= 1 and max(std) <= 1
        scale = [255.0 if unit else 1.0] * 3
        return [_Input(rank, where, order, _times(mean, scale), _times(std, scale))]
    return [_Input(rank, where, order)] if order is not None else []


def _not_normalised(path: tuple[str, ...], group: Mapping[str, Any]) -> list[_Input]:
    """Return what transformers says of pixels that are scaled alone, or taken as they are."""
    if group.get("do_normalize") is not False:
        return []
    factor = group.get("rescale_factor", 1 / 255)
    is_number = isinstance(factor, int | float) and 1e-6 < factor < 1e6
    std = round(1 / factor, 3) if is_number and group.get("do_rescale") is not False else 1.0
    return [_Input(2, ".".join(path) or "the file", None, (0.0,) * 3, (std,) * 3)]


def _times(values: list[float], scale: list[float]) -> tuple[float, ...]:
    return tuple(round(a * b, 3) for a, b in zip(values, scale, strict=True))


def _numbers(value: Any) -> list[float] | None:
    """Return three finite numbers, from a list or a small tensor; None for anything else."""
    view = as_tensor(value)
    if view is not None:
        if math.prod(view.shape) != 3:
            return None
        value = view.read().double().flatten().tolist()
    if isinstance(value, str):
        value = [float(part) for part in re.findall(r"-?\d+\.?\d*", value[:200])]
    value = plain(value)
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    value = [plain(part) for part in value]
    if not all(isinstance(part, int | float) and not isinstance(part, bool) for part in value):
        return None
    if not all(abs(part) < 1e6 for part in value):
        return None
    return [float(part) for part in value]
