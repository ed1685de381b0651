"""Suggestions for a name or a key that is not known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

MAX_LISTED = 12


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return `unknown task 'voz'; did you mean 'voc'? known: ...`, a long list cut short."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(names[:MAX_LISTED]) or "none"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"unknown {what} {name!r};{hint} known: {listed}{more}"


def known_keys(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Return the keys that a model allows at a place such as `("tasks", 0)`."""
    models = [model]
    for part in place:
        fields = [each.model_fields[str(part)] for each in models if part in each.model_fields]
        if fields:  # else an index, a name in a mapping, or the tag of a union
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    return list(dict.fromkeys(name for each in models for name in each.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for part in get_args(annotation) for inner in _models_in(part)]
