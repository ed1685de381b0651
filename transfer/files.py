"""Files written whole or not at all, digests, and words of messages. Imports no torch."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

MAX_STEM_BYTES = 200  # of a temporary name, whose whole may have 255
MAX_LINE, MAX_PLACE = 370, 150  # characters of a refusal, and of the path in it


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
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside `path`, renamed to `path` where the block ends well.

    Raises:
        OSError: `path` is there, and is no empty folder.
    """
    path = path.resolve()  # a folder takes no link's place
    stem = os.fsencode(path.name)[:MAX_STEM_BYTES].decode(errors="ignore")
    temporary = path.with_name(f".{stem}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python from looking for cycles in a block that makes millions of objects without any.

    It walks all objects again and again as their number grows: of JSON of COCO's size it takes two
    thirds of the time to read it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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


def printable(text: object, instead: str = "?") -> str:
    """Return text from a file without line breaks and what a terminal would obey."""
    return "".join(character if character.isprintable() else instead for character in str(text))


def one_line(error: object) -> str:
    """Return a message on one line, white space and what cannot be printed made one space."""
    return " ".join(printable(error, " ").split())


def refusal(path: Path, reason: object) -> str:
    """Return why a file is refused, on one line that is no longer than a terminal shows at once."""
    place = printable(path)
    place = place if len(place) <= MAX_PLACE else f"...{place[-MAX_PLACE:]}"
    line = f"{place}: {printable(reason)}"
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..."


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return ` did you mean voc_2007_test?`, nothing where no known name is close."""
    close = get_close_matches(name, list(known), n=1)
    return "".join(f" did you mean {show(match)}?" for match in close)


def near_file(path: Path) -> str:
    """Return `; did you mean weights/moco.pth?` for a file that is not there, or nothing.

    It is one beside it of nearly the same name and a suffix that begins alike: .pt and .pth.
    """
    stems: dict[str, Path] = {}
    with suppress(OSError):
        for each in path.parent.iterdir():
            if each.suffix[:2] == path.suffix[:2] and each.is_file():
                stems[each.stem] = each
    hint = did_you_mean(path.stem, stems, lambda stem: printable(stems[stem]))
    return f";{hint}" if hint else ""
