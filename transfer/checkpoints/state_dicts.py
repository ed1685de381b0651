"""Find the dicts in a file that have tensors in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transfer.checkpoints.safe_calls import Array, TensorView
from transfer.checkpoints.unpickler import Instance

Group = dict[str, TensorView]
MAX_DEPTH = 8
CONTAINERS = (Instance, Mapping, list, tuple)


def groups_of(content: Mapping[Any, Any]) -> dict[str, Group]:
    """Return every dict with tensors in it, by its path of keys and places in lists.

    Raises:
        ValueError: two of them have the same path, or two tensors the same name.
    """
    groups: dict[str, Group] = {}
    for path, node in _mappings(content):
        found: Group = {}
        for key, value in node.items():
            view = value.view() if isinstance(value, Array) else value
            text = _text(key)
            if text is None or not isinstance(view, TensorView):
                continue
            if text in found:
                raise ValueError(f"two tensors of the name {text[:100]}, one as bytes")
            found[text] = view
        name = ".".join(path)
        if found and name in groups:
            raise ValueError(f"two dicts of tensors at the same path {name[:100]}")
        if found:
            groups[name] = found
    return groups


def _mappings(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield every dict once, with its path, in the file's order (a dict before what is in it)."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while waiting:
        path, node = waiting.pop()
        node = node.items if isinstance(node, Instance) else node
        if id(node) in seen or len(path) > MAX_DEPTH:
            continue
        if isinstance(node, Mapping):
            texts = ((_text(key), value) for key, value in node.items())
            inner = [((*path, text), value) for text, value in texts if text is not None]
            yield path, node
        elif isinstance(node, list | tuple):
            inner = [((*path, str(index)), value) for index, value in enumerate(node)]
        else:
            continue
        seen.add(id(node))
        waiting += [pair for pair in reversed(inner) if isinstance(pair[1], CONTAINERS)]


def _text(key: Any) -> str | None:
    """Return a key as text (old Python's names are bytes), None for other keys."""
    return (
        key.decode("latin-1") if isinstance(key, bytes) else key if isinstance(key, str) else None
    )


def whole_model(content: Mapping[Any, Any]) -> str | None:
    """Return the path of a model that was pickled whole, None if there is none."""
    for path, node in _mappings(content):
        for key, value in node.items():
            state = value.state if isinstance(value, Instance) else None
            if isinstance(key, str) and isinstance(state, dict) and "_modules" in state:
                return ".".join((*path, key))
    return None
