"""Files written whole or not at all, digests, lists in JSON, words of messages. No torch."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard

MAX_STEM_BYTES = 200  # of a temporary name, whose whole may have 255
MAX_LISTED = 3  # names in a line
MAX_LINE, MAX_PLACE = 370, 150  # characters of a refusal, and of the path in it
LIMIT = 1e15  # beyond it a number is a mistake, and whole numbers stop being exact in floats
SPACE = re.compile(r"[ \t\n\r]*")
AFTER_ENTRY = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")
BEFORE_LIST = re.compile(r"[ \t\n\r]*:[ \t\n\r]*(?=\[)")


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


def read_text(path: Path) -> str:
    """Return the text of a regular file (a pipe would be waited on for ever).

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or no regular file.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    return path.read_text(encoding="utf-8")


def list_under(text: str, key: str) -> list[Any] | None:
    """Return the list under a key of the outermost object of a JSON text, and decode little else.

    Nearly all of COCO's file are its annotations. A key that stands once in the text, plainly and
    before a list, is the outermost object's if what comes before it, or else what follows its list,
    is the rest of one. None where only the whole text can tell.
    """
    mark = f'"{key}"'
    at = text.find(mark)
    value = BEFORE_LIST.match(text, at + len(mark))
    if at < 0 or value is None or text.find(mark, at + 1) >= 0:
        return None
    try:
        entries, end = json.JSONDecoder().raw_decode(text, value.end())
        is_at_start = at < len(text) - end
        around = json.loads(text[:at] + '"":0}' if is_at_start else '{"":0' + text[end:])
    except (ValueError, RecursionError):
        return None
    return entries if isinstance(around, dict) else None


class Entries:
    """A list in a JSON text, decoded anew whenever it is walked, one entry in memory at a time.

    `around` is the text's outermost object with an empty list in its place. `see` is called with
    the entries and their indices as they are walked for the first time.

    Raises:
        ValueError: that cannot be told without decoding the whole text, which may be no JSON.
    """

    def __init__(self, text: str, key: str, see: Callable[[int, Any], None]) -> None:
        mark = f'"{key}"'
        at = text.find(mark)
        value = BEFORE_LIST.match(text, at + len(mark))
        if at < 0 or value is None or text.find(mark, at + 1) >= 0:
            raise ValueError(f"{mark} is not there once, before a list")
        self.text, self.start, self.count = text, value.end(), 0
        end = self.start
        for entry, end in self._walk():  # noqa: B007  (the last one's counts)
            see(self.count, entry)
            self.count += 1
        close = text.index("]", end) + 1
        self.around = json.loads(text[: self.start] + "[]" + text[close:])
        if not isinstance(self.around, dict) or self.around.get(key) != []:
            raise ValueError(f"{mark} is none of the outermost object's keys")

    def __iter__(self) -> Iterator[Any]:
        return (entry for entry, _ in self._walk())

    def __len__(self) -> int:
        return self.count

    def _walk(self) -> Iterator[tuple[Any, int]]:
        decode = json.JSONDecoder().raw_decode
        at = self.start + 1
        if empty := AFTER_ENTRY.match(self.text, at):
            if empty[1] == "]":
                return
            raise ValueError("a comma before the first entry")
        first = SPACE.match(self.text, at)
        at = first.end() if first else at
        while True:
            entry, at = decode(self.text, at)
            yield entry, at
            after = AFTER_ENTRY.match(self.text, at)
            if after is None:
                raise ValueError("no comma or bracket after an entry")
            if after[1] == "]":
                return
            at = after.end()


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number of a sane size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LIMIT


def is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number of a sane size."""
    return isinstance(value, int) and is_number(value)


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


def near_path(path: Path) -> str:
    """Return `; did you mean weights/moco.pth?` for a path that is not there, or nothing.

    It is one beside it of nearly the same name and a suffix that begins alike: .pt and .pth. One
    without a suffix may be a folder.
    """
    stems: dict[str, Path] = {}
    with suppress(OSError):
        for each in path.parent.iterdir():
            if each.suffix[:2] == path.suffix[:2] and (each.is_file() or not path.suffix):
                stems[each.stem] = each
    hint = did_you_mean(path.stem, stems, lambda stem: printable(stems[stem]))
    return f";{hint}" if hint else ""


def number_of(count: int, noun: str, verb: str = "", verb_of_many: str = "") -> str:
    """Return `1 image is` or `2 images are`: a number with its noun and, if any, its verb."""
    text = f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
    return f"{text} {verb if count == 1 else verb_of_many}".rstrip()


def share_of(count: int, total: int, noun: str, verb: str, verb_of_many: str) -> str:
    """Return `1 of 2 images is` or `2 of 2 images are`."""
    return f"{count:,} of {number_of(total, noun)} {verb if count == 1 else verb_of_many}"


def few(names: Sequence[str], limit: int = MAX_LISTED) -> str:
    """Return the first names of a list, and how many more there are."""
    more = len(names) - limit
    return f"{', '.join(names[:limit])}{f' and {more:,} more' if more > 0 else ''}"
