"""The settings beside a file's tensors, as plain values: dicts, namespaces, texts of configs.

Nothing is executed. Of a config that is Python text, as OpenMMLab's, literals, `dict(...)` and
names given before are taken; all else in it is None.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from transfer.checkpoints.other_files import OF_TRANSFORMERS
from transfer.checkpoints.state_dicts import Instance, as_tensor, as_text

Group = tuple[tuple[str, ...], dict[str, Any]]

MAX_TEXT = 2**19
MAX_YAML = 2**15  # its parser is slow; detectron2's whole config is 10,000 characters
MAX_GROUPS = 3000
MAX_SETTINGS = 500  # of a group, and elements of a list
MAX_DEPTH = 10
TEXTS = ("config", "cfg")
OF_OTHERS = re.compile(
    r"optim\w*|sched\w*|lr_sched\w*|callbacks?|loops?|loss\w*|scaler|teacher\w*|distill\w*|target\w*|"
    r"momentum\w*|ema\w*|state_dict\w*|message_hub|env\w*|init_cfg|heads?|\w+_head|neck|decoder",
    re.IGNORECASE,
)


def groups_of(content: Mapping[Any, Any], beside: Mapping[str, Any] | None = None) -> list[Group]:
    """Return every dict of settings in a file and in the JSON files beside it, with its path.

    Keys are in lower case. What belongs to optimisers, heads, teachers and copies is left out.
    """
    groups: list[Group] = []
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    waiting += [((name,), value) for name, value in (beside or {}).items()]
    while waiting and len(groups) < MAX_GROUPS:
        path, node = waiting.pop(0)
        node = plain(node)
        if id(node) in seen or len(path) > MAX_DEPTH:
            continue
        seen.add(id(node))
        if isinstance(node, list | tuple):
            parts = enumerate(islice(node, MAX_SETTINGS))
            waiting += [((*path, str(index)), part) for index, part in parts if _nested(part)]
        if not isinstance(node, Mapping):
            continue
        group: dict[str, Any] = {}
        for key, value in islice(node.items(), MAX_SETTINGS):
            name = as_text(key)
            if name is None or OF_OTHERS.fullmatch(name):
                continue
            group[name.lower()] = plain(value)
            text = value if isinstance(value, str) else ""
            is_config = name.lower() in TEXTS or text.startswith("{")
            inside = settings_in_text(text) if text and is_config else value
            if _nested(inside):
                waiting.append(((*path, name), inside))
        if group:
            groups.append((path, group))
    return groups


def _nested(value: Any) -> bool:
    """Return whether there may be settings in it."""
    return isinstance(value, Instance | Mapping | list | tuple) and as_tensor(value) is None


def plain(node: Any) -> Any:
    """Return what a namespace or a node of OmegaConf holds, anything else as it is."""
    if not isinstance(node, Instance) or as_tensor(node) is not None:
        return node
    if node.items:
        return node.items
    parts = node.state if isinstance(node.state, tuple) else (node.state,)
    state = next((part for part in parts if isinstance(part, Mapping) and part), {})
    return state["_val"] if "_val" in state else state.get("_content", state)


def settings_in_text(text: str) -> dict[str, Any]:
    """Return what a config's text gives to names; nothing of a text that is no config."""
    if len(text) > MAX_TEXT:
        return {}
    try:
        if text.lstrip().startswith("{"):
            read = json.loads(text)
            return read if isinstance(read, dict) else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes in the text
            statements = ast.parse(text).body
    except SyntaxError:
        return _settings_in_yaml(text)
    except (ValueError, RecursionError, MemoryError):
        return {}
    names: dict[str, Any] = {}
    for one in statements:
        if isinstance(one, ast.Assign) and len(one.targets) == 1:
            target = one.targets[0]
            if isinstance(target, ast.Name):
                names[target.id] = _literal(one.value, names)
    return names


def _settings_in_yaml(text: str) -> dict[str, Any]:
    """Return the settings in a YAML text; none of a long one, or of merges, which can double."""
    if len(text) > MAX_YAML or "<<" in text:
        return {}
    try:
        read = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return read if isinstance(read, dict) else {}


def _literal(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return the value of an expression that runs nothing, else None."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(part, names) for part in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        number = node.operand.value
        negative = isinstance(node.op, ast.USub) and isinstance(number, int | float)
        return -number if negative else None  # type: ignore[operator]
    pairs: list[tuple[Any, ast.expr]] = []
    if isinstance(node, ast.Dict):
        pairs = [(key and _literal(key, names), v) for key, v in zip(node.keys, node.values)]  # noqa: B905
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
    else:
        return None
    made: dict[Any, Any] = {}
    for key, part in pairs:
        value = _literal(part, names)
        if key is None and isinstance(value, dict):  # **base
            made |= value
        elif isinstance(key, str):
            made[key] = value
    return made


def settings_beside(path: Path, names: Iterable[str] = OF_TRANSFORMERS) -> dict[str, Any]:
    """Return what transformers, timm and detectron2 write beside their weights, by its name."""
    folder = path if path.is_dir() else path.parent
    beside = {}
    for name in names:
        file = folder / name
        if file.is_file() and file.stat().st_size <= MAX_TEXT:
            read = json.loads if name.endswith(".json") else _settings_in_yaml
            try:
                content = read(file.read_text("utf-8"))
            except (ValueError, RecursionError, OSError):
                continue
            if isinstance(content, dict):
                beside[name] = content
    return beside
