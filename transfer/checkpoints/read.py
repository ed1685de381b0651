"""A backbone out of a checkpoint file, read without executing anything in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.checkpoints.containers import Content, read_content
from transfer.checkpoints.encoders import (
    Candidate,
    absent,
    chosen_by_hand,
    extra_names,
    find_candidates,
    matching_family,
    no_batch_counted,
)
from transfer.checkpoints.families import FORMATS, IMAGENET_INPUT, Family
from transfer.checkpoints.haiku import EXPERIMENT, without_haiku
from transfer.checkpoints.limits import cpu_time_limit
from transfer.checkpoints.state_dicts import (
    Instance,
    StateDict,
    describe,
    find_state_dicts,
    special_tensors,
    whole_model,
)
from transfer.messages import did_you_mean, printable, refusal
from transfer.resnet.architecture import Architecture, recognise
from transfer.resnet.names import COUNTER, ordered_names

if TYPE_CHECKING:
    from torch import Tensor

THIS_PROJECT = "whitening-transfer"
SHARED_BYTES = 2**24  # that the tensors of a network may have in common
UNCOUNTED = "no batch was counted: from another framework? --format simclr-v1 for [0,1] input"


@dataclass(frozen=True)
class Backbone:
    """A ResNet under torchvision's names without `fc`, and how its input is normalised (0-255).

    `method` is how it was trained, as far as the file or its family says.
    """

    state_dict: dict[str, Tensor]
    arch: str
    format: str
    encoder: str = ""
    input: dict[str, Any] = field(default_factory=lambda: dict(IMAGENET_INPUT))
    architecture: Architecture = field(default_factory=lambda: Architecture("resnet50"))
    container: str = ""
    other_encoders: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    method: str = ""

    @property
    def detectron2(self) -> dict[str, Any]:
        """The detectron2 config keys that must be set for these weights."""
        return {
            "INPUT.FORMAT": self.input["format"],
            "MODEL.PIXEL_MEAN": list(self.input["pixel_mean"]),
            "MODEL.PIXEL_STD": list(self.input["pixel_std"]),
            **self.architecture.detectron2_keys(),
        }


def read_backbone(path: Path, *, format: str | None = None, encoder: str | None = None) -> Backbone:
    """Return the backbone in `path`: of a published family, or under any one prefix.

    Args:
        path: a checkpoint as torch, safetensors or pickle writes it, whatever its name.
        format: the family, one of `families.FORMATS`; recognised from the content where left out.
        encoder: the encoder, or the prefix before its names, where the file holds several or the
            one to take is not the family's own.

    Returns:
        The tensors in float32 under torchvision's names without `fc`, the architecture, the format,
        and the mean and std of the pixels (0 to 255) that the network expects.

    Raises:
        ValueError: the file cannot be read safely, or holds no backbone that detectron2 builds.

    Example:
        >>> import tempfile, torch, torchvision
        >>> state = torchvision.models.resnet18().state_dict()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "checkpoint_0199.pth.tar"
        ...     torch.save({"state_dict": {f"encoder_q.{k}": v for k, v in state.items()}}, path)
        ...     backbone = read_backbone(path)
        >>> backbone.format, backbone.encoder, backbone.arch, len(backbone.state_dict)
        ('moco', 'encoder_q.', 'resnet18', 120)
        >>> backbone.input["pixel_mean"]
        [123.675, 116.28, 103.53]
    """
    if format is not None and format not in FORMATS:
        hint = did_you_mean(format, FORMATS, repr)
        raise ValueError(f"unknown format {format!r};{hint} known: {', '.join(FORMATS)}")
    with cpu_time_limit():
        content = read_content(path)
        try:
            if not isinstance(content.value, dict):
                raise ValueError(_not_a_dict(content.value))
            if EXPERIMENT in content.value:
                content = replace(content, value=without_haiku(content.value))
            return _backbone(content, format, encoder)
        except ValueError as error:
            one = re.search(r"-(\d{5})-of-(\d{5})\.", path.name)
            part = f"one shard of {int(one[2])} (give their index): " if one else ""
            raise ValueError(refusal(path, f"{part}{error}")) from None


def _not_a_dict(value: Any) -> str:
    """Return what a file holds in place of a state dict."""
    state = value.state if isinstance(value, Instance) else None
    whole = "a whole pickled model, " if isinstance(state, dict) and "_modules" in state else ""
    return (
        f"holds {whole}{describe(value)}, wanted a state dict: save what the model's state_dict() "
        "returns"
    )


def _backbone(content: Content, format: str | None, encoder: str | None) -> Backbone:
    state_dicts = find_state_dicts(content.value)
    candidates = find_candidates(state_dicts)
    if not state_dicts or not (candidates or encoder):
        raise ValueError(_without_encoder(content, state_dicts))
    chosen = None
    if encoder is not None:
        candidates, chosen = chosen_by_hand(encoder, candidates, state_dicts)
    family, chosen = matching_family(content.value, state_dicts, candidates, format, chosen)
    tensors = state_dicts[chosen.path]
    _refuse_detectrons_own(chosen, tensors)
    extra = extra_names(chosen, candidates, tensors)
    try:
        architecture = recognise({name: one.shape for name, one in chosen.tensors.items()}, extra)
    except ValueError as error:
        label = f"{chosen.label}: " if chosen.label else ""
        raise ValueError(special_tensors(content.value) or f"{label}{error}") from None
    if chosen.spelling == "caffe2":
        architecture = replace(architecture, stride_in_1x1=True)
    num_bytes = sum(view.num_bytes for view in chosen.tensors.values())
    if num_bytes > content.num_bytes + SHARED_BYTES:
        raise ValueError(
            f"its tensors take {num_bytes} bytes, the file has {content.num_bytes}: they lie on "
            "top of each other, as no network's do"
        )
    state, notes = _tensors(chosen, architecture)
    if family.name not in (THIS_PROJECT, "simclr-v1", "simclr-v2") and no_batch_counted(chosen):
        notes.append(UNCOUNTED)
    method = content.value.get("method") if family.name == THIS_PROJECT else None
    return Backbone(
        state_dict=state,
        arch=architecture.name,
        format=family.name,
        encoder=chosen.label,
        input=_input(content, family, architecture),
        architecture=architecture,
        container=content.container,
        other_encoders=tuple(printable(one.label) for one in candidates if one is not chosen),
        notes=tuple(note for note in (family.note, *notes) if note),
        unknown=tuple(printable(name) for name in sorted(content.unknown)),
        method=method if isinstance(method, str) else family.name,
    )


def _refuse_detectrons_own(chosen: Candidate, tensors: StateDict) -> None:
    """Raise ValueError for weights of detectron2 or Detectron 1 that need or bear no conversion."""
    if chosen.spelling == "detectron2":
        raise ValueError(
            f"already has detectron2's names (under {chosen.prefix or 'no prefix'}), nothing to "
            "convert: give it to MODEL.WEIGHTS as it is, with the INPUT and STRIDE_IN_1X1 it was "
            "trained with"
        )
    if chosen.spelling != "caffe2":
        return
    if any(name.endswith("_bn_s") for name in tensors):
        raise ValueError(
            "Caffe2 weights of Detectron 1, BatchNorm folded into scale and bias: nothing to train "
            "on; detectron2 reads the file as it is (BGR, std 1, STRIDE_IN_1X1 True)"
        )
    bias = tensors.get(chosen.prefix + "conv1_b")
    if bias is not None and bool(bias.read().any()):
        raise ValueError("conv1_b is not zero: its stem has a bias, which detectron2's has not")


def _without_encoder(content: Content, state_dicts: Mapping[str, StateDict]) -> str:
    """Return why there is no encoder in a file."""
    whole = whole_model(content.value)
    if whole is not None:
        return f"a whole pickled model under {whole[:60]!r}; save its state_dict()"
    special = special_tensors(content.value)
    if special is not None:
        return special
    if state_dicts:
        return absent(state_dicts)
    kind = content.value.get("type")
    if kind in ("shard_list", "slice_list"):
        return f"VISSL's {kind}: a list of the files that hold the weights, which are not in it"
    keys = list(content.value)[:20]
    shown = [str(key)[:60] if isinstance(key, str | int) else describe(key) for key in keys]
    return f"no tensors in it; keys: {', '.join(dict.fromkeys(shown))[:200]}"


def _input(content: Content, family: Family, architecture: Architecture) -> dict[str, Any]:
    """Return the input convention: the file's own where it is one of ours, else the family's."""
    if family.name != THIS_PROJECT:
        return dict(family.input or IMAGENET_INPUT)
    stated = content.value.get("input")
    if stated is None or "arch" not in content.value:
        raise ValueError("not a backbone.pth of this project (no arch and input in it)")
    keys = ("pixel_mean", "pixel_std")
    triples: list[Any] = [stated.get(key) if isinstance(stated, dict) else None for key in keys]
    sound = all(
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        and all(abs(value) < 1e30 for value in values)
        for values in triples
    )
    if not sound or stated.get("format") not in ("RGB", "BGR") or min(triples[1]) <= 0:
        raise ValueError(
            "its `input` is not {format: RGB or BGR, pixel_mean: [3], pixel_std: [3]}, finite "
            "numbers, the latter above 0"
        )
    arch = content.value["arch"]
    if arch != architecture.name:
        what = arch[:60] if isinstance(arch, str) else describe(arch)
        raise ValueError(f"it says that it is {what}, its weights are {architecture.name}'s")
    numbers = {key: [float(value) for value in stated[key]] for key in keys}
    return {"format": stated["format"], **numbers}


def _tensors(chosen: Candidate, architecture: Architecture) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors in float32, in torchvision's order, and what was done to them."""
    import torch  # noqa: PLC0415  (what is refused before needs no torch)

    state, notes, broken = {}, [], []
    cast = set()
    for name in ordered_names(architecture.base):
        if name not in chosen.tensors:
            continue
        value = chosen.tensors[name].read()
        if name.endswith(COUNTER):
            state[name] = _count(name, value)
            continue
        if not value.is_floating_point():
            raise ValueError(f"{name} is of {value.dtype}, wanted floating point")
        if value.dtype != torch.float32:
            cast.add(str(value.dtype).removeprefix("torch."))
        state[name] = value.to(torch.float32)
        # the sum is quicker, but may overflow
        if not bool(torch.isfinite(state[name].sum()) or torch.isfinite(state[name]).all()):
            broken.append(name)
    if broken:
        raise ValueError(f"{len(broken)} tensors hold NaN or infinity, first {broken[0]}")
    negative = [name for name in state if name.endswith("running_var") and state[name].min() < 0]
    if negative:
        raise ValueError(f"{len(negative)} variances are negative, first {negative[0]}")
    if cast:
        notes.append(f"stored as {', '.join(sorted(cast))}, converted as float32")
    return state, notes


def _count(name: str, value: Tensor) -> Tensor:
    """Return a counter as detectron2 has it; some frameworks store it as a float."""
    count = value.reshape(())
    whole = not count.is_complex() and float(count).is_integer() and 0 <= float(count) < 2**53
    if not whole:
        raise ValueError(f"{name} is no count: {str(count.item())[:40]} of {value.dtype}")
    return count.long()
