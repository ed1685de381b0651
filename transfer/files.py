"""Files written whole or not at all, and the digest of a file. Imports no torch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAX_STEM_BYTES = 200  # of a temporary name, whose whole may have 255


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder, renamed to `path` where the block ends well.

    Its suffix is that of `path`: detectron2 reads a file by it.
    """
    stem = os.fsencode(path.stem)[:MAX_STEM_BYTES].decode(errors="ignore")
    temporary = path.with_name(f".{stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked_folder(folder: Path) -> Iterator[Callable[[], None]]:
    """Give a function that waits for the folder's lock, which is kept until the block ends.

    Where the file system has no locks, nothing is locked.
    """
    descriptor = os.open(folder, os.O_RDONLY)

    def lock() -> None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)

    try:
        yield lock
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, whole or not at all; NaN, which is no JSON, is refused."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def sha256_of(path: Path, num_last: int | None = None) -> str:
    """Return the sha256 of a file's content in hex, or that of its last bytes."""
    with path.open("rb") as file:
        if num_last is not None:
            file.seek(-num_last, os.SEEK_END)
        return hashlib.file_digest(file, "sha256").hexdigest()
