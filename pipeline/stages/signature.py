"""Content addresses: what a stage computes, as 16 hex digits.

A signature covers the version of this rule, the stage's name and version, its whole resolved config
and the signatures of its inputs. Settings that cannot change a result stay out: they carry
`json_schema_extra={"identity": False, "why": ..}` in their config class. A setting that came later
carries `{"identity": "if given"}`: while it has its default, the signatures are those of before.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel

SIGNATURE_DIGITS = 16
DATA, CHECKPOINT, WORLD_SIZE = "data_content", "checkpoint_sha256", "world_size"  # of an identity
RULE = 2  # the version of the rule by which an identity is made; part of every signature


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def signature_of(identity: dict[str, Any]) -> str:
    """Return the first 16 hex digits of the sha256 over the canonical JSON of `identity`."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:SIGNATURE_DIGITS]


def identity_of(config: BaseModel) -> dict[str, Any]:
    """Return the resolved config without the fields that are marked as not changing a result."""
    content: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        extra, value = field.json_schema_extra, getattr(config, name)
        mark = extra.get("identity") if isinstance(extra, dict) else None
        if mark is False or (mark == "if given" and value == field.default):
            continue
        content[name] = _plain(value)
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity_of(value)
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{value!r} ({type(value).__name__}) has no place in a signature")


def differences(
    a: Any, b: Any, path: str = "", names: tuple[str, str] = ("stored", "wanted")
) -> list[str]:
    """Return one line for every place where two JSON values differ; `names` is what they are."""
    if isinstance(a, dict) and isinstance(b, dict):
        lines = []
        for key in sorted(a.keys() | b.keys()):
            place = f"{path}.{key}" if path else str(key)
            if key in a and key in b:
                lines += differences(a[key], b[key], place, names)
            else:
                in_a, in_b = (repr(side[key]) if key in side else "nothing" for side in (a, b))
                lines.append(f"{place}: {names[0]} {in_a}, {names[1]} {in_b}")
        return lines
    return [] if a == b else [f"{path}: {names[0]} {a!r}, {names[1]} {b!r}"]
