"""A backbone out of a checkpoint file, read without executing anything in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
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
)
from transfer.checkpoints.families import (
    FAMILIES,
    FORMATS,
    IMAGENET_INPUT,
    LIGHTNING,
    METHODS,
    UNIT_INPUT,
    UNLISTED,
    Family,
    check_format,
)
from transfer.checkpoints.haiku import EXPERIMENT, without_haiku
from transfer.checkpoints.other_files import OF_DETECTRON2, OF_TRANSFORMERS, WEIGHT_FILES
from transfer.checkpoints.settings import groups_of, settings_beside
from transfer.checkpoints.state_dicts import (
    Instance,
    StateDict,
    describe,
    find_state_dicts,
    special_tensors,
    whole_model,
)
from transfer.checkpoints.statements import Statement, statement_of
from transfer.checkpoints.stem_input import distances
from transfer.checkpoints.unpickler import cpu_time_limit
from transfer.files import printable, refusal, sha256_of
from transfer.resnet import COUNTER, Architecture, ordered_names, recognise

if TYPE_CHECKING:
    from torch import Tensor

THIS_PROJECT = "whitening-transfer"
SHARED_BYTES = 2**24  # that the tensors of a network may have in common
AUTHOR = "whitening-transfer-benchmark"  # of detectron2's files that this project writes
RGB_AUTHORS = ("torchvision", "moco", "openselfsup", AUTHOR)
MAX_METHOD, MAX_PROGRESS = 60, 120
MAX_COMPANION = 2**22
COMPANION_FIELDS = {"input", "architecture", "family", "method"}
STATE_FIELDS = {"config", "num_images", "ranks", "step"}  # of a pretraining's last.pth
CAFFE2_SUFFIX = "_stride_in_1x1"


@dataclass(frozen=True)
class Backbone:
    """A ResNet under torchvision's names without `fc`, and how its input is normalised (0-255).

    `method` is how it was trained, `unlisted` where neither the file nor its family says. `notes`
    are all that is to be said of it, `warnings` those on which its numbers rest though the file
    does not say them, such as an input that is assumed, and the family's.
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
    warnings: tuple[str, ...] = ()
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


def read_backbone(
    path: Path | str, *, format: str | None = None, encoder: str | None = None
) -> Backbone:
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
    check_format(format)
    path = Path(path)
    with cpu_time_limit():
        content = read_content(path)
        try:
            if not isinstance(content.value, dict):
                raise ValueError(_not_a_dict(content.value))
            if EXPERIMENT in content.value:
                content = replace(content, value=without_haiku(content.value))
            return _backbone(content, format, encoder, path)
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


def _backbone(content: Content, format: str | None, encoder: str | None, path: Path) -> Backbone:
    state_dicts = find_state_dicts(content.value)
    candidates = find_candidates(state_dicts)
    if not state_dicts or not (candidates or encoder):
        raise ValueError(_without_encoder(content, state_dicts))
    chosen = None
    if encoder is not None:
        candidates, chosen = chosen_by_hand(encoder, candidates, state_dicts)
    family, chosen = matching_family(content.value, state_dicts, candidates, format, chosen)
    tensors = state_dicts[chosen.path]
    _refuse_detectron_1(chosen, tensors)
    architecture = _architecture(content, chosen, extra_names(chosen, candidates, tensors))
    companion = _companion(path, content, chosen.spelling)
    said = Statement()
    if family.name != THIS_PROJECT and companion is None:
        files, unread = _files_beside(path, chosen.spelling)
        groups = groups_of(content.value, {"metadata": content.metadata, **files})
        said = statement_of(groups, tensors, architecture)
        said.warnings += [f"{name} beside it holds no settings: not used" for name in unread]
    state, notes = _tensors(chosen, architecture)
    if family.name == "simclr-v1" and format is None and not _fits_unit_input(state):
        family = next(one for one in FAMILIES if one.name == "torchvision")
    convention, stride, from_where = _input(content, family, architecture, companion)
    if said.stride_in_1x1 is not None:
        stride = said.stride_in_1x1
    name, method = _origin(content, family, companion)
    warnings = [family.note, from_where if companion is None else "", *said.warnings]
    if format is not None:
        warnings.append("of that format as the user states it")
    if name == UNLISTED and said.mean is None and companion is None:
        warnings.append("ImageNet's mean and std are assumed")
    if name == UNLISTED and LIGHTNING[1:] in content.value:
        notes.append("a Lightning checkpoint")
    told = [from_where, *said.notes, *notes, _of_pretraining(content.value)[1]]
    warnings = [printable(warning) for warning in warnings if warning]
    return Backbone(
        state_dict=state,
        arch=architecture.name,
        format=name,
        encoder=chosen.label,
        input=with_input(convention, said.order, said.mean, said.std),
        architecture=replace(architecture, stride_in_1x1=stride),
        container=content.container,
        other_encoders=tuple(printable(one.label) for one in candidates if one is not chosen),
        notes=tuple(dict.fromkeys([*warnings, *(printable(note) for note in told if note)])),
        warnings=tuple(warnings),
        unknown=tuple(printable(name) for name in sorted(content.unknown)),
        method=method,
    )


def _files_beside(path: Path, spelling: str) -> tuple[dict[str, Any], list[str]]:
    """Return the settings in files beside weights by their names, and the files without any."""
    names: tuple[str, ...] = ()
    if spelling == "detectron2":
        names = OF_DETECTRON2
    elif path.is_dir() or path.name in WEIGHT_FILES or spelling == "hugging-face":
        names = OF_TRANSFORMERS
    folder, files = path if path.is_dir() else path.parent, settings_beside(path, names)
    return files, [name for name in names if name not in files and (folder / name).exists()]


def with_input(
    convention: dict[str, Any],
    order: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> dict[str, Any]:
    """Return an input convention with what is stated over it, the rest turned to that order."""
    order = order or convention["format"]
    step = 1 if order == convention["format"] else -1
    return {
        "format": order,
        "pixel_mean": list(mean or convention["pixel_mean"][::step]),
        "pixel_std": list(std or convention["pixel_std"][::step]),
    }


def _architecture(content: Content, chosen: Candidate, extra: tuple[str, ...]) -> Architecture:
    """Return what names and shapes say, if the tensors lie in the file as a network's do."""
    try:
        architecture = recognise({name: one.shape for name, one in chosen.tensors.items()}, extra)
    except ValueError as error:
        label = f"{chosen.label}: " if chosen.label else ""
        raise ValueError(special_tensors(content.value) or f"{label}{error}") from None
    num_bytes = sum(view.num_bytes for view in chosen.tensors.values())
    if num_bytes > content.num_bytes + SHARED_BYTES:
        raise ValueError(
            f"its tensors take {num_bytes} bytes, the file has {content.num_bytes}: they lie on "
            "top of each other, as no network's do"
        )
    return architecture


def _fits_unit_input(state: Mapping[str, Tensor]) -> bool:
    """Return whether the stem's statistics are nearer to pixels in [0, 1] than to ImageNet's."""
    far = distances(state, {"unit": UNIT_INPUT, "imagenet": IMAGENET_INPUT})
    return bool(far) and far["unit"] < far["imagenet"]


def _companion(path: Path, content: Content, spelling: str) -> dict[str, Any] | None:
    """Return what this project wrote of a backbone, None where it wrote nothing.

    An export has it in the weights' metadata; a conversion beside its weights or, the same, with
    them.

    Raises:
        ValueError: that beside is of another file.
    """
    if spelling != "detectron2":
        return _dict_of(content.metadata.get(AUTHOR, ""), COMPANION_FIELDS)
    ours = content.value.get("__author__") == AUTHOR and content.value.keys() >= COMPANION_FIELDS
    within = {key: content.value[key] for key in COMPANION_FIELDS} if ours else None
    file = path.with_suffix(".json")
    if path.suffix != ".pkl" or not file.is_file() or file.stat().st_size > MAX_COMPANION:
        return within
    fields = {"output_sha256", "input", "architecture", "detectron2"}
    companion = _dict_of(file.read_bytes(), fields)
    if companion is None:
        return within
    if companion["output_sha256"] != sha256_of(path):
        raise ValueError(
            f"{file.name} beside it describes another file; convert this one's source again, or "
            "move the .json away"
        )
    return companion


def _dict_of(text: Any, fields: set[str]) -> dict[str, Any] | None:
    """Return what a JSON text holds, None where it is no dict with these keys."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError, TypeError):
        return None
    return content if isinstance(content, dict) and content.keys() >= fields else None


def _refuse_detectron_1(chosen: Candidate, tensors: StateDict) -> None:
    """Raise ValueError for Caffe2 weights that cannot be a ResNet with BatchNorm."""
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
    return f"no tensors in it; keys: {', '.join(dict.fromkeys(shown))[:200] or 'none'}"


def _input(
    content: Content, family: Family, architecture: Architecture, companion: dict[str, Any] | None
) -> tuple[dict[str, Any], bool, str]:
    """Return input convention and stride in the 1x1 of a file or its family, and a note of it."""
    if companion is not None:
        built = companion["architecture"]
        stride = built.get("stride_in_1x1") if isinstance(built, dict) else None
        if not isinstance(stride, bool):
            raise ValueError("its `architecture` does not say stride_in_1x1: true or false")
        place = "its companion .json" if "output_sha256" in companion else "the file itself"
        return _sound(companion["input"]), stride, f"input as {place} says"
    fed = family.input or IMAGENET_INPUT
    whose = f"`input` of family {family.name!r} in families.py (keys {', '.join(fed)})"
    fed = _sound(fed if fed.keys() == IMAGENET_INPUT.keys() else None, whose)
    deep = architecture.depth >= 50
    author = content.value.get("__author__")
    if family.name == "detectron2" and str(author).lower() in RGB_AUTHORS:
        return dict(IMAGENET_INPUT), False, (
            f"detectron2's names, written by {str(author)[:40]}'s converter: RGB, ImageNet's mean "
            "and std and the stride in the 3x3 convolution are assumed"
        )  # fmt: skip
    if family.name == "detectron2":
        return fed, deep, (
            "detectron2's names: its defaults are assumed, BGR, std 1" + ", stride in 1x1" * deep
        )  # fmt: skip
    if family.name != THIS_PROJECT:
        return fed, family.name == "caffe2" and deep, ""
    stated = content.value.get("input")
    if stated is None or "arch" not in content.value:
        raise ValueError("not a backbone.pth of this project (no arch and input in it)")
    convention = _sound(stated)
    arch = content.value["arch"]
    stride = arch == architecture.name + CAFFE2_SUFFIX and deep
    if arch != architecture.name and not stride:
        what = arch[:60] if isinstance(arch, str) else describe(arch)
        raise ValueError(f"it says that it is {what}, its weights are {architecture.name}'s")
    return convention, stride, ""


def _sound(stated: Any, whose: str = "its `input`") -> dict[str, Any]:
    """Return an input that a file of this project, or the table of families, states.

    Raises:
        ValueError: it is not `{format: RGB or BGR, pixel_mean: [3], pixel_std: [3]}`.
    """
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
            f"{whose} is not {{format: RGB or BGR, pixel_mean: [3], pixel_std: [3]}}, finite "
            "numbers, the latter above 0"
        )
    numbers = {key: [float(value) for value in stated[key]] for key in keys}
    return {"format": stated["format"], **numbers}


def _origin(content: Content, family: Family, companion: dict[str, Any] | None) -> tuple[str, str]:
    """Return the family and the method that a file or its companion names, else unlisted."""
    name = family.name if companion is None else companion.get("family")
    if not isinstance(name, str) or name not in FORMATS:
        name = UNLISTED
    said = content.value if name == THIS_PROJECT else {}
    if loss := _of_pretraining(content.value)[0]:
        said = {"method": loss}
    method = (companion or said).get("method", name if name in METHODS else UNLISTED)
    if not isinstance(method, str) or not method.isprintable() or len(method) > MAX_METHOD:
        method = UNLISTED
    return name, method


def _of_pretraining(state: Mapping[Any, Any]) -> tuple[Any, str]:
    """Return the loss and a note of the progress of a pretraining whose state this is, if any."""
    config = state.get("config")
    if not state.keys() >= STATE_FIELDS or not isinstance(config, dict):
        return None, ""
    loss, steps, epochs = (config.get(key) for key in ("loss", "max_steps", "epochs"))
    length = f"{steps} steps" if steps is not None else f"{epochs} epochs"
    progress = f"the state of a pretraining of {length} after step {state['step']}"
    if steps is None:
        progress += f" (epoch {state.get('epoch')})"
    return loss.get("name") if isinstance(loss, dict) else None, progress[:MAX_PROGRESS]


def _tensors(chosen: Candidate, architecture: Architecture) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors in float32, in torchvision's order, and what was done to them."""
    import torch  # noqa: PLC0415  (what is refused before needs no torch)

    state: dict[str, Tensor] = {}
    notes: list[str] = []
    broken = []
    cast = set()
    counts = _counts(chosen, architecture, notes)
    for name in ordered_names(architecture.base):
        if name in counts:
            state[name] = counts[name]
        if name.endswith(COUNTER) or name not in chosen.tensors:
            continue
        value = chosen.tensors[name].read()
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


def _counts(chosen: Candidate, architecture: Architecture, notes: list[str]) -> dict[str, Tensor]:
    """Return the counters of batches; where some are not in the file, the others' largest."""
    names = [name for name in ordered_names(architecture.base) if name.endswith(COUNTER)]
    counts = {n: _count(n, chosen.tensors[n].read()) for n in names if n in chosen.tensors}
    if not 0 < len(counts) < len(names):
        return counts
    largest = max(counts.values(), key=int)
    notes.append(
        f"{len(names) - len(counts)} of {len(names)} counters of batches are not in it, "
        f"{int(largest)} is taken"
    )
    return {name: counts.get(name, largest) for name in names}


def _count(name: str, value: Tensor) -> Tensor:
    """Return a counter as detectron2 has it; some frameworks store it as a float."""
    count = value.reshape(())
    whole = not count.is_complex() and float(count).is_integer() and 0 <= float(count) < 2**53
    if not whole:
        raise ValueError(f"{name} is no count: {str(count.item())[:40]} of {value.dtype}")
    return count.long()
