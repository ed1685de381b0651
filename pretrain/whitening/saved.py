"""What a hand-written derivative keeps from its forward pass, in autograd's own keeping.

A tensor that only hangs on `ctx` lives as long as the result does, a second backward pass included;
one that is also an output makes a cycle that is never freed. Autograd frees what it keeps itself
after the backward pass, raises its own error at a second one, and shows it to saved-tensor hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class _Place:
    index: int


def save_for_backward(ctx: Any, value: Any) -> None:
    """Keep `value`, lists and dataclasses with tensors anywhere within, for `saved`."""
    tensors: list[Tensor] = []

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensors.append(leaf)
        return _Place(len(tensors) - 1)

    ctx.without_tensors = _map_leaves(take, value)
    ctx.save_for_backward(*tensors)


def saved(ctx: Any) -> Any:
    """Return what `save_for_backward` kept in `ctx`.

    Raises:
        RuntimeError: torch's own, in a second backward pass without `retain_graph`.
    """
    tensors = ctx.saved_tensors

    def put(leaf: Any) -> Any:
        return tensors[leaf.index] if isinstance(leaf, _Place) else leaf

    return _map_leaves(put, ctx.without_tensors)


def _map_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """Return `value` with `change` applied to everything in its lists and dataclasses."""
    if isinstance(value, list):
        return [_map_leaves(change, member) for member in value]
    if not is_dataclass(value) or isinstance(value, _Place | type):
        return change(value)
    inside = {f.name: _map_leaves(change, getattr(value, f.name)) for f in fields(value)}
    return replace(value, **inside)
