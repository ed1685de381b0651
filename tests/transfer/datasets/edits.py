"""Annotations in COCO's layout, changed."""

import json
from collections.abc import Callable
from typing import Any

from transfer.config.data import CocoData

Faults = Callable[..., list[str]]
Content = dict[str, Any]


def edit(data: CocoData, change: Callable[[Content], object]) -> None:
    content = json.loads(data.annotations.read_text(encoding="utf-8"))
    change(content)
    data.annotations.write_text(json.dumps(content), encoding="utf-8")


def first(**changes: Any) -> Callable[[Content], object]:
    """Change the first annotation."""
    return lambda content: content["annotations"][0].update(changes)


def image(**changes: Any) -> Callable[[Content], object]:
    """Change the first image."""
    return lambda content: content["images"][0].update(changes)


def category(**changes: Any) -> Callable[[Content], object]:
    """Change the first category."""
    return lambda content: content["categories"][0].update(changes)
