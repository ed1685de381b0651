"""Read YAML with detectron2's `_BASE_` inheritance, and apply `key=value` overrides."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.config.plain_yaml import parse
from pipeline.config.suggestions import known_keys, unknown

BASE_KEY = "_BASE_"
MAX_BASES = 20
MAX_BYTES = 2_000_000
MAX_SHOWN = 200


def load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in `path`, merged over the file that its `_BASE_` names.

    Mappings merge key by key, everything else replaces; a base is looked up beside the file that
    names it, as in detectron2.

    Raises:
        ValueError: the file is missing, is not YAML of plain values, is not a mapping, or its
            bases form a circle.
    """
    return _load(path, ())


def _load(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in seen:
        raise ValueError(f"{path}: {BASE_KEY} leads back to the file itself")
    if len(seen) > MAX_BASES:
        raise ValueError(f"{path}: {BASE_KEY} leads through more than {MAX_BASES} files")
    try:
        content = parse(_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, wanted a mapping of keys")
    base = content.pop(BASE_KEY, None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ValueError(f"{path}: {BASE_KEY} is {base!r}, wanted a path")
    try:
        below = _load(path.parent / base, (*seen, resolved))
    except ValueError as error:
        raise ValueError(f"{path}: {BASE_KEY}: {error}") from None
    return merge(below, content)


def _text(path: Path) -> str:
    try:
        if not path.exists():
            raise ValueError("no such config file")
        if not path.is_file():
            raise ValueError("not a file, wanted a config")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes, wanted a config")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read as text ({error})") from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the entries of `over` put over it; neither argument is changed."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def apply_overrides(content: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return `content` with every `a.b.0.c=value` applied; values are YAML, indices are numbers.

    Raises:
        ValueError: an override is not `key=value`, or its path does not lead anywhere.
    """
    content = copy.deepcopy(content)
    faults = [fault for text in overrides if (fault := _apply_one(content, text))]
    if faults:
        raise ValueError("\n".join(faults))
    return content


def load_changed(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the mapping in `path` with the overrides that another config asks for.

    Raises:
        ValueError: as `load_yaml` and `apply_overrides`, every line naming the file.
    """
    content = load_yaml(path)
    try:
        return apply_overrides(content, list(overrides))
    except ValueError as error:
        raise ValueError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def _apply_one(content: dict[str, Any], text: str) -> str | None:
    path, separator, value_text = text.partition("=")
    if not separator or not path:
        return f"override {text!r}: wanted key=value"
    try:
        value = parse(value_text)
    except ValueError as error:
        return f"override {text!r}: {error}"
    *parents, last = path.split(".")
    node: Any = content
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = value
    except (KeyError, IndexError, ValueError, TypeError, AttributeError):
        return f"override {text!r}: the config has nothing at {path!r} to set"
    return None


def faults_of(
    error: ValidationError, where: str, model: type[BaseModel] | None = None
) -> list[str]:
    """Return pydantic's faults, one line each: where, which key, what was wrong, what was given.

    With the `model` that was validated, an unknown key is told with the keys that there are.
    """
    lines = []
    for fault in error.errors(include_url=False):
        *place, last = fault["loc"] or ("(whole file)",)
        key = _cut(".".join(str(part) for part in (*place, last)))
        if fault["type"] == "extra_forbidden" and model is not None:
            known = known_keys(model, place)
            lines.append(f"{where}: {key}: {unknown('key', _cut(str(last)), known)}")
            continue
        given = fault["input"]
        shown = "" if isinstance(given, dict | list | BaseModel) else f", got {_cut(repr(given))}"
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {key}: {message}{shown}")
    return lines


def _cut(text: str) -> str:
    """Return what fits on a line of a terminal."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}.."
