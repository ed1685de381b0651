"""Values of a detectron2 config by their dotted names."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode


def value_at(cfg: CfgNode, key: str) -> Any:
    """Return the value of `SECTION.KEY`."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node
