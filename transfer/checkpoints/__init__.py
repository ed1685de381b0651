"""Anybody's checkpoint files, read without executing anything in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transfer.checkpoints.read import Backbone, read_backbone

__all__ = ["Backbone", "read_backbone"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: `--help` lists `families` without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from transfer.checkpoints import read  # noqa: PLC0415  (imports torch)

    return getattr(read, name)
