"""Files that are whole or absent (written beside, flushed, renamed), and words of messages."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from stat import S_ISREG
from typing import Any

MAX_LISTED = 12
TRACEBACK = "Traceback (most recent call last):"
RAISED = re.compile(r"^([A-Za-z_][\w.]*)(?:: |$)", re.MULTILINE)  # `ValueError: its words`


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes its place when the block ends well.

    Its mode follows the umask, as that of any new file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:  # a write, unlike an open, does not say which file it was
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` atomically as indented JSON; NaN is refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the JSON in `path`.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it to have it made again") from None


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_json_line(path: Path, entry: dict[str, Any]) -> None:
    """Append one line to a log of JSON lines; a line that was cut before it stays by itself."""
    cut = tail(path, 1) not in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + json.dumps(entry) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log of JSON lines, `{}` for a damaged one; none without a file."""
    entries = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        entries.append(entry if isinstance(entry, dict) else {})
    return entries


def last_json_line(path: Path, tail_bytes: int = 65536) -> dict[str, Any] | None:
    """Return the last complete JSON line of a log that may still be growing, or None."""
    for line in reversed(tail(path, tail_bytes).split(b"\n")[:-1]):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            return content
    return None


def tail(path: Path, num_bytes: int) -> bytes:
    """Return the end of a file; nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
            return file.read()
    except OSError:
        return b""


def printable(text: object, instead: str = "?") -> str:
    """Return text without line breaks and what a terminal would obey."""
    return "".join(character if character.isprintable() else instead for character in str(text))


def one_line(text: object) -> str:
    """Return text on one line, white space and what cannot be printed made one space."""
    return " ".join(printable(text, " ").split())


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return `unknown task 'voz'; did you mean 'voc'? known: ...`, a long list cut short."""
    names = list(known)
    longer = [each for each in names if each.startswith(name)] if len(name) > 2 else []
    close = longer if len(longer) == 1 else get_close_matches(name, names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(names[:MAX_LISTED]) or "none"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"unknown {what} {name!r};{hint} known: {listed}{more}"


def innermost(name: str, text: str) -> tuple[str, str]:
    r"""Return type and words of the error that an error of another process tells of, or its own.

    torch puts the whole traceback of a loader's worker, or of a process that it started, before
    them.

    Example:
        >>> innermost("OSError", f"Caught it.\n{TRACEBACK}\n  File x\nKeyError: 'a.png'\n")
        ('KeyError', "'a.png'")
    """
    _, is_there, rest = text.rpartition(TRACEBACK)
    raised = RAISED.search(rest) if is_there else None
    if raised is None:
        return name, text
    return raised[1].rpartition(".")[2], rest[raised.end() :].strip()


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; a hard link counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for each in path.rglob("*") if path.is_dir() else [path]:
        with suppress(OSError):  # a run at work renames and removes
            stat = each.lstat()
            if S_ISREG(stat.st_mode):
                sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def size_text(num_bytes: float) -> str:
    """Return a size such as `3.2 GB`.

    Example:
        >>> size_text(3_210_000_000), size_text(12)
        ('3.2 GB', '12 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
