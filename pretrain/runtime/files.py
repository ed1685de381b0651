"""Files written whole or not at all, and errors in one line. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder, renamed to `path` where the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(content: Any, path: Path) -> None:
    """Write `content` as JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")


def check_folder_of(path: Path | None) -> None:
    """Raise ValueError where there is no folder to write `path` to; None is written nowhere."""
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"{path.parent}: no such folder to write {path.name} to")


def one_line(error: Exception) -> str:
    """Return an error's words without line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
