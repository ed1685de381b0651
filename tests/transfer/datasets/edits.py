"""A set that is checked by itself, and annotations in COCO's layout, changed."""

import json
from collections.abc import Callable
from typing import Any

from transfer.config.data import CocoData, VocData
from transfer.datasets.check import Decode, SetReport, check_sets
from transfer.datasets.findings import Needs

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


def check_set(
    name: str, data: CocoData | VocData, needs: Needs, decode: Decode = "auto"
) -> SetReport:
    """Return the report of `check_sets` of one set."""
    return dict(check_sets({name: (data, needs)}, decode))[name]
