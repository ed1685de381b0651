"""Files written whole or not at all, and errors in one line. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
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


def near_folder(path: Path) -> str:
    """Return `; did you mean data/photos?` for a folder that is not there, or nothing."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    close = get_close_matches(path.name, [each.name for each in beside if each.is_dir()], n=1)
    return "".join(f"; did you mean {path.with_name(name)}?" for name in close)


def one_line(error: Exception) -> str:
    """Return an error's words without line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
