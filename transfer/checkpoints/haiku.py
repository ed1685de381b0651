"""DeepMind's BYOL: haiku's names and shapes as torchvision's.

A haiku network is two dicts of modules: parameters (kernels HWIO, scales and offsets 1x1x1xC) and
state (moving averages of mean and variance). Facts: google-deepmind/deepmind-research, byol.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from transfer.checkpoints.state_dicts import (
    MAX_TENSORS,
    Instance,
    StateDict,
    TensorView,
    as_tensor,
)

EXPERIMENT = "experiment_state"
MAX_ENTRIES = 16  # of a module, and of what an instance of haiku's is made of
FIELDS = ("online_params", "target_params", "online_state", "target_state", "opt_state")
KINDS = {"conv": "conv", "batchnorm": "bn"}
MODULES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"(?:.*/)?initial_(conv|batchnorm)(?:_1)?", lambda m: f"{KINDS[m[1]]}1"),
    (r"(?:.*/)?block_group_(\d)/~/block_(\d+)/~/(conv|batchnorm)_(\d)",
     lambda m: f"layer{int(m[1]) + 1}.{m[2]}.{KINDS[m[3]]}{int(m[4]) + 1}"),
    (r"(?:.*/)?block_group_(\d)/~/block_(\d+)/~/shortcut_(conv|batchnorm)",
     lambda m: f"layer{int(m[1]) + 1}.{m[2]}.downsample.{int(m[3] == 'batchnorm')}"),
)  # fmt: skip
ENTRIES = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}
AVERAGES = {"mean_ema": "running_mean", "var_ema": "running_var"}


def without_haiku(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return a file's content with haiku's networks, if it holds any, under torchvision's names."""
    experiment = content.get(EXPERIMENT)
    if isinstance(experiment, Instance):  # a named tuple; pickles do not hold its fields' names
        fields = dict(zip(FIELDS, experiment.args, strict=False))
    elif isinstance(experiment, Mapping):
        fields = {key: experiment.get(key) for key in FIELDS}
    else:
        return content
    networks = {
        f"{which}_params": _network(
            _mapping(fields.get(f"{which}_params")), _mapping(fields.get(f"{which}_state"))
        )
        for which in ("online", "target")
    }
    return {**content, EXPERIMENT: networks} if any(networks.values()) else content


def _mapping(node: Any) -> Mapping[Any, Any]:
    """Return a dict, whatever class of haiku's it was frozen in."""
    if isinstance(node, Mapping):
        return node
    if not isinstance(node, Instance):
        return {}
    state = node.state.values() if isinstance(node.state, Mapping) else ()
    parts = (node.items, *node.args[:MAX_ENTRIES], *islice(state, MAX_ENTRIES))
    return next((part for part in parts if isinstance(part, Mapping) and part), {})


def _network(params: Mapping[Any, Any], averages: Mapping[Any, Any]) -> StateDict:
    """Return a network's tensors; what is no part of a ResNet keeps haiku's name."""
    tensors: StateDict = {}
    if len(params) + len(averages) > MAX_TENSORS:
        raise ValueError(f"more than {MAX_TENSORS} modules of haiku, no network has so many")
    for module, entries in params.items():
        for entry, value in islice(_mapping(entries).items(), MAX_ENTRIES):
            view = _view(value, kernel=entry == "w")
            if view is not None:
                tensors[f"{_module(str(module))}.{ENTRIES.get(entry, entry)}"] = view
    for module, entries in averages.items():
        norm, _, kind = str(module).rpartition("/~/")
        view = _view(_mapping(entries).get("average"), kernel=False)
        if kind in AVERAGES and view is not None:
            tensors[f"{_module(norm)}.{AVERAGES[kind]}"] = view
    return tensors


def _module(name: str) -> str:
    """Return torchvision's name of a module, or `projector.~.linear` for what it has not."""
    for pattern, made in MODULES:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return made(match)
    return name.replace("/", ".")


def _view(value: Any, kernel: bool) -> TensorView | None:
    """Return an array as torch lays it out: kernels OIHW, per-channel values in one dimension."""
    view = as_tensor(value)
    if view is None:
        return None
    order = tuple(range(len(view.shape)))
    if kernel and len(order) == 4:
        order = (3, 2, 0, 1)
    elif view.shape[:-1] == (1,) * (len(order) - 1):
        order = order[-1:]
    shape = tuple(view.shape[axis] for axis in order)
    stride = tuple(view.stride[axis] for axis in order)
    return TensorView(view.storage, view.dtype, view.offset, shape, stride)
