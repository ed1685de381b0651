"""YAML of plain values with detectron2's `_BASE_` inheritance, `key=value` overrides, and faults.

A YAML parser believes a file that says a key twice, nests deeper than its stack (libyaml's wrapper
then takes the process down) or grows a thousandfold by aliases; so its events are looked at first.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.stages.files import one_line, printable, unknown
from transfer.files import near_path

Config = TypeVar("Config", bound=BaseModel)
BASE_KEY = "_BASE_"
MAX_BASES = 20
MAX_BYTES = 2_000_000
MAX_SHOWN = 200
MAX_SHOWN_VALUE = 60
MAX_DEPTH = 40
MAX_NODES = 100_000
MAX_NUMBER = 2**63
SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


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
    content = {} if content is None else content
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
            raise ValueError(f"no such config file{near_path(path)}")
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


def apply_overrides(
    content: dict[str, Any], overrides: Sequence[str], where: str = ""
) -> dict[str, Any]:
    """Return `content` with every `a.b.0.c=value` applied; values are YAML, indices are numbers.

    A list is replaced; `a.b+=value` adds a value, or the values of a list, behind what is there.

    Raises:
        ValueError: an override is not `key=value`, or its path does not lead anywhere.
    """
    content = copy.deepcopy(content)
    faults = [where + fault for text in overrides if (fault := _apply_one(content, text))]
    if faults:
        raise ValueError("\n".join(faults))
    return content


def _apply_one(content: dict[str, Any], text: str) -> str | None:
    path, separator, value_text = text.partition("=")
    path, adds = path.removesuffix("+"), path.endswith("+")
    if not separator or not path:
        return f"override {text!r}: wanted key=value, or key+=value to add to a list"
    try:
        value = parse(value_text)
    except ValueError as error:
        return f"override {text!r}: {error}"
    *parents, last = path.split(".")
    node: Any = content
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if adds:
            before = node[int(last)] if isinstance(node, list) else node.get(last)
            if not isinstance(before, list | None):
                return f"override {text!r}: {path} is {_cut(repr(before))}, += adds to a list"
            value = [*(before or []), *(value if isinstance(value, list) else [value])]
        node[int(last) if isinstance(node, list) else last] = value
    except (KeyError, IndexError, ValueError, TypeError, AttributeError):
        return f"override {text!r}: the config has nothing at {path!r} to set"
    return None


def validated(model: type[Config], content: dict[str, Any], where: str) -> Config:
    """Return the config that `content` holds.

    Raises:
        ValueError: one line for every fault, as `faults_of` tells them.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ValueError("\n".join(faults_of(error, where, model))) from None


def faults_of(
    error: ValidationError, where: str, model: type[BaseModel] | None = None
) -> list[str]:
    """Return pydantic's faults, one line each: where, which key, what was wrong, what was given.

    With the `model` that was validated, an unknown key is told with the keys that there are.
    """
    lines = []
    for fault in error.errors(include_url=False):
        written, models = list(fault["loc"]), list[type[BaseModel]]()
        if model is not None:
            written, models = located(model, fault["loc"])
        *place, last = written or ("(whole file)",)
        key = _cut(".".join(str(part) for part in (*place, last)))
        if fault["type"] == "extra_forbidden" and model is not None:
            known = list(dict.fromkeys(name for each in models for name in each.model_fields))
            lines.append(f"{where}: {key}: {unknown('key', _cut(str(last)), known)}")
            continue
        if fault["type"] == "union_tag_invalid":  # a `name` or `format` that says which keys follow
            told = fault["ctx"]
            known = [name.strip("'") for name in told["expected_tags"].split(", ")]
            tag = told["discriminator"].strip("'")
            lines.append(f"{where}: {key}.{tag}: {unknown(tag, _cut(str(told['tag'])), known)}")
            continue
        if fault["type"] == "union_tag_not_found":
            tag = fault["ctx"]["discriminator"].strip("'")
            kinds = [get_args(each.model_fields[tag].annotation) for each in models]
            listed = ", ".join(name for names in kinds for name in names)
            lines.append(f"{where}: {key}: has no {tag}; wanted one of {listed}")
            continue
        given = fault["input"]
        if fault["type"] in ("tuple_type", "list_type"):
            form = _cut(str(given), MAX_SHOWN_VALUE)
            lines.append(f"{where}: {key}: wanted a list, such as [{form}], got {form}")
            continue
        message = fault["msg"].removeprefix("Value error, ")
        is_said = isinstance(given, str) and repr(given) in message
        is_long = isinstance(given, dict | list | BaseModel)
        shown = "" if is_said or is_long else f", got {_cut(repr(given))}"
        lines.append(f"{where}: {key}: {message}{shown}")
    return lines


def located(
    model: type[BaseModel], place: Sequence[int | str]
) -> tuple[list[int | str], list[type[BaseModel]]]:
    """Return a fault's place such as `("tasks", 0)` as a user writes it, and the models there.

    In a union pydantic adds which of its models a fault is of, such as `("loss", "w-mse",
    "sub_batch")`, where the config has `loss.sub_batch`.
    """
    written: list[int | str] = []
    models, tagged_by = [model], ""
    for part in place:
        if tagged_by:
            models = [m for m in models if part in get_args(m.model_fields[tagged_by].annotation)]
            tagged_by = ""
            continue
        written.append(part)
        fields = [each.model_fields[str(part)] for each in models if part in each.model_fields]
        types: list[Any] = [
            field.annotation for field in fields
        ] or [  # names beside keys, as in `resources`
            inspect.get_annotations(each, eval_str=True)["__pydantic_extra__"]
            for each in models
            if each.model_config.get("extra") == "allow"
        ]
        if types:  # else an index, or a name in a mapping
            models = [inner for each in types for inner in _models_in(each)]
            tags = [field.discriminator for field in fields]
            tagged_by = next((tag for tag in tags if isinstance(tag, str)), "")
    return written, models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for part in get_args(annotation) for inner in _models_in(part)]


def _cut(text: str, length: int = MAX_SHOWN) -> str:
    """Return what fits on a line of a terminal."""
    text = printable(text)
    return text if len(text) <= length else f"{text[:length]}.."


def parse(text: str) -> Any:
    """Return what `text` holds: mappings with text as keys, lists, text, finite numbers, null.

    Raises:
        ValueError: it is not YAML, or says what no config may say.
    """
    try:
        _check_events(text)
        content = yaml.load(text, SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({one_line(error)})") from None
    except (KeyError, AttributeError, TypeError, OverflowError, ValueError) as error:
        if isinstance(error, RefusedError):
            raise
        reason = one_line(f"{type(error).__name__}: {error}")  # PyYAML's, of a bad scalar
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
            _add(stack[-1], 1, event)


def _add(parent: _Open, size: int, scalar: yaml.ScalarEvent | None = None) -> None:
    if scalar is not None and parent.is_mapping and parent.num_children % 2 == 0:
        if scalar.value in parent.keys:
            key = scalar.value[:MAX_SHOWN_VALUE]
            raise RefusedError(f"{_line(scalar)}: key {key!r} is there twice")
        parent.keys.add(scalar.value)
    parent.num_children += 1
    parent.size += size
    if parent.size > MAX_NODES:
        raise RefusedError(f"more than {MAX_NODES:,} values, aliases written out")


def _line(event: yaml.Event) -> str:
    mark = event.start_mark
    return "a line" if mark is None else f"line {mark.line + 1}"


def _check_values(value: Any, place: str) -> None:
    """Refuse whatever JSON, which signatures are made of, could not hold."""
    where, kind = place[:-1] or "the value", type(value).__name__
    if isinstance(value, dict):
        for key, entry in value.items():
            inner = f"{place}{_cut(str(key), MAX_SHOWN_VALUE)}"
            if not isinstance(key, str):
                raise RefusedError(f"{inner}: a key of type {type(key).__name__}, wanted text")
            _check_values(entry, f"{inner}.")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check_values(entry, f"{place}{index}.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"{where}: {value}, wanted a finite number")
    elif isinstance(value, int) and abs(value) >= MAX_NUMBER:
        raise RefusedError(f"{where}: a number of more than 63 bits")
    elif not isinstance(value, str | int | float | None):
        raise RefusedError(
            f"{where}: {_cut(str(value), MAX_SHOWN_VALUE)} is a {kind}, wanted text (put it in "
            "quotes), a number, a list or a mapping"
        )
