"""YAML that holds plain values only, and little of them: what configs are written in.

A parser believes a file that says a key twice, nests deeper than its stack (libyaml's wrapper then
takes the process down) or grows a thousandfold by aliases; so its events are looked at first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 40
MAX_NODES = 100_000
MAX_NUMBER = 2**63
MAX_SHOWN = 60
SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def parse(text: str) -> Any:
    """Return what `text` holds: mappings with text as keys, lists, text, finite numbers, null.

    Raises:
        ValueError: it is not YAML, or says what no config may say.
    """
    try:
        _check_events(text)
        content = yaml.load(text, SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({' '.join(str(error).split())})") from None
    except (KeyError, AttributeError, TypeError, OverflowError, ValueError) as error:
        if isinstance(error, RefusedError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())  # PyYAML's, of a bad scalar
        raise ValueError(f"not YAML ({reason})") from None
    _check_values(content, "")
    return content


class RefusedError(ValueError):
    """The text is YAML, but no config may say this."""


@dataclass
class _Open:
    """A mapping or list that has begun: its anchor, its size so far, and a mapping's keys."""

    anchor: str | None
    is_mapping: bool
    size: int = 1
    num_children: int = 0
    keys: set[str] = field(default_factory=set)


def _check_events(text: str) -> None:
    """Refuse deep nesting, keys that are there twice, and aliases that explode or go in circles."""
    stack = [_Open(None, False)]
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, SafeLoader):
        if isinstance(event, CLOSING):
            closed = stack.pop()
            if closed.anchor is not None:
                sizes[closed.anchor] = closed.size
            _add(stack[-1], closed.size)
        elif isinstance(event, OPENING):
            stack.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(stack) > MAX_DEPTH:
                raise RefusedError(f"{_line(event)}: nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.AliasEvent):
            if any(entry.anchor == event.anchor for entry in stack):
                raise RefusedError(f"{_line(event)}: *{event.anchor} contains itself")
            _add(stack[-1], sizes.get(event.anchor or "", 1))
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None:
                sizes[event.anchor] = 1
            _note_key(stack[-1], event)
            _add(stack[-1], 1)


def _note_key(parent: _Open, event: yaml.ScalarEvent) -> None:
    if parent.is_mapping and parent.num_children % 2 == 0:
        if event.value in parent.keys:
            raise RefusedError(f"{_line(event)}: key {event.value[:MAX_SHOWN]!r} is there twice")
        parent.keys.add(event.value)


def _add(parent: _Open, size: int) -> None:
    parent.num_children += 1
    parent.size += size
    if parent.size > MAX_NODES:
        raise RefusedError(f"more than {MAX_NODES:,} values, aliases written out")


def _line(event: yaml.Event) -> str:
    mark = event.start_mark
    return "a line" if mark is None else f"line {mark.line + 1}"


def _check_values(value: Any, place: str) -> None:
    """Refuse whatever JSON, which signatures are made of, could not hold."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise RefusedError(f"{place}{_shown(key)}: a key of type {_kind(key)}, wanted text")
            _check_values(entry, f"{place}{_shown(key)}.")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check_values(entry, f"{place}{index}.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"{place[:-1] or 'the value'}: {value}, wanted a finite number")
    elif isinstance(value, int) and abs(value) >= MAX_NUMBER:
        raise RefusedError(f"{place[:-1] or 'the value'}: a number of more than 63 bits")
    elif not isinstance(value, str | int | float | None):
        raise RefusedError(
            f"{place[:-1] or 'the value'}: {_shown(value)} is a {_kind(value)}, wanted text (put "
            "it in quotes), a number, a list or a mapping"
        )


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}.."


def _kind(value: Any) -> str:
    return type(value).__name__
