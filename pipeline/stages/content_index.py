"""Digests of files by content, kept between commands as long as the files' stamps stay.

A stamp is size, mtime, ctime and inode of what a path leads to, links followed. Every write sets
the ctime to the clock, and no program can set it back: a file of the kept stamp has the content
that was read, any other is read again. What changed within the last two seconds may change again
within one tick of the clock, so its digest is not kept.

`$XDG_CACHE_HOME/whitening-transfer-benchmark` (`~/.cache` by default) holds one file for each
folder, written whole or not at all, with a checksum: one that is damaged counts as absent, and
where nothing can be written nothing is kept. What a kill leaves there ends in `.tmp`, and nothing
reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from transfer.files import near_path

if TYPE_CHECKING:
    from rich.progress import Progress

VERSION = 1  # of the kept files
SETTLED_S = 2.0
BLOCK = 2**14  # bytes
CHUNK = 2**20
BATCH = 256  # files
NUM_THREADS = 16  # stat, read and hashlib let go of the interpreter; a network disk answers many
SAVE_EVERY_S = 20.0
SHOWN_AFTER_S, LINE_EVERY_S = 3.0, 15.0
Level = Literal["content", "blocks"]


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    (digest,) = file_digests(path.parent, [path.name])
    if digest is None:
        raise ValueError(f"{path}: no such file{near_path(path)}")
    return digest


def file_digests(root: Path, names: Sequence[str], level: Level = "content") -> list[str | None]:
    """Return the digests of the files of these names below `root`; None where there is no file.

    At level `blocks` a digest is that of a file's size, first and last 16 KiB. What was read before
    an interrupt is kept.

    Raises:
        ValueError: a file cannot be read, or changed while it was read.
    """
    indexes: dict[str, _FolderIndex] = {}
    for name in names:
        folder = name.rpartition("/")[0]
        if folder not in indexes:
            indexes[folder] = _FolderIndex.load(os.path.realpath(root / folder), level)
    stop = threading.Event()

    def of_batch(start: int) -> list[str | None]:
        return [
            None if stop.is_set() else indexes[name.rpartition("/")[0]].digest(
                f"{root}/{name}", name.rpartition("/")[2], stop
            )
            for name in names[start : start + BATCH]
        ]  # fmt: skip

    digests: list[str | None] = []
    saved = time.monotonic()
    with ThreadPoolExecutor(NUM_THREADS) as threads, _progress(root, len(names)) as show:
        try:
            for batch in [threads.submit(of_batch, at) for at in range(0, len(names), BATCH)]:
                while not wait([batch], timeout=1.0).done:
                    show(len(digests))
                digests += batch.result()
                show(len(digests))
                if time.monotonic() - saved > SAVE_EVERY_S:
                    saved = time.monotonic()
                    for index in indexes.values():
                        index.save()
        finally:
            stop.set()
            threads.shutdown(cancel_futures=True)
            for index in indexes.values():
                index.save()
    return digests


def kept_json(key: str, compute: Callable[[], Any]) -> Any:
    """Return the JSON that `compute` makes, kept under a `key` that says all it is made of."""
    place = _place(key)
    content = _read_kept(place)
    if content is None:
        content = compute()
        _keep(place, content)
    return content


@dataclass
class _FolderIndex:
    """The digests kept of the files in one folder, each as `stamp digest` by the file's name."""

    folder: str
    level: Level
    kept: dict[str, str]
    new: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str, level: Level) -> _FolderIndex:
        return cls(folder, level, _read_kept(_place(f"{folder}|{level}")) or {})

    def digest(self, path: str, name: str, stop: threading.Event) -> str | None:
        """Return the digest of a file by its kept stamp or its content; None if there is none."""
        try:
            status = os.stat(path)  # noqa: PTH116  (a Path each is slow)
            if not S_ISREG(status.st_mode):
                return None  # a pipe would be waited on for ever
            stamp = _stamp(status)
            before, _, digest = self.kept.get(name, "").partition(" ")
            if before == stamp:
                return digest
            with open(path, "rb") as file:  # noqa: PTH123
                started, status = time.time(), os.fstat(file.fileno())
                digest = _digest_of(file, status.st_size, self.level, stop)
                stamp, after = _stamp(status), _stamp(os.fstat(file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
        if stamp != after:
            raise ValueError(f"{path}: changed while it was read; try again when it is written")
        if started - status.st_ctime > SETTLED_S and not stop.is_set():
            self.new[name] = f"{stamp} {digest}"
        return digest

    def save(self) -> None:
        """Keep what is new, with what another process has kept; drop files that are gone."""
        if not self.new:
            return
        new, place = self.new.copy(), _place(f"{self.folder}|{self.level}")
        self.new = {}
        self.kept = self.kept | (_read_kept(place) or {}) | new
        with contextlib.suppress(OSError):
            present = set(os.listdir(self.folder))  # noqa: PTH208
            _keep(place, {name: entry for name, entry in self.kept.items() if name in present})


def _stamp(status: os.stat_result) -> str:
    times = f"{status.st_mtime_ns:x}.{status.st_ctime_ns:x}"
    return f"{status.st_size:x}.{times}.{status.st_ino:x}"


def _digest_of(file: BinaryIO, size: int, level: Level, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    if level == "blocks":
        digest.update(b"%d:" % size + file.read(BLOCK))
        file.seek(max(BLOCK, size - BLOCK))
        digest.update(file.read(BLOCK))
    else:
        while not stop.is_set() and (chunk := file.read(min(size + 1, CHUNK))):
            digest.update(chunk)
    return digest.hexdigest()


def _place(key: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(os.fsencode(f"{VERSION}|{key}")).hexdigest()[:32]
    return Path(home, "whitening-transfer-benchmark", f"{digest}.kept")


def _read_kept(place: Path) -> Any:
    """Return the kept JSON, or None where there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        checksum, _, content = place.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() == checksum:
            return json.loads(content)
    return None


def _keep(place: Path, content: Any) -> None:
    """Write the whole file or nothing; it is not flushed, as its checksum tells of a torn one."""
    text = json.dumps(content, separators=(",", ":")).encode()
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".tmp", delete=False) as file:
            try:
                file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
                file.close()
                os.replace(file.name, place)  # noqa: PTH105
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


@contextlib.contextmanager
def _progress(root: Path, num_files: int) -> Iterator[Callable[[int], None]]:
    """Give what shows on stderr how many files are done, if it takes longer than a moment."""
    text = f"reading {root} once for its identity"
    started = time.monotonic()
    said = started + SHOWN_AFTER_S - LINE_EVERY_S
    bar: Progress | None = None

    def show(num_done: int) -> None:
        nonlocal bar, said
        now = time.monotonic()
        if now - started < SHOWN_AFTER_S:
            return
        if bar is None:
            bar = _bar(text, num_files, started)
        bar.update(bar.task_ids[0], completed=num_done)
        if bar.console.is_terminal:
            bar.start()
        elif now - said > LINE_EVERY_S:
            said = now
            bar.console.print(f"{text}: {num_done:,} of {num_files:,} files", soft_wrap=True,
                              markup=False, highlight=False)  # fmt: skip

    try:
        yield show
    finally:
        if bar and bar.live.is_started:
            bar.stop()


def _bar(text: str, num_files: int, started: float) -> Progress:
    """Return a bar of what began at `started`; what is known by then needs none, and no import."""
    from rich import progress as bars  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    from pretrain.runtime.bars import FittingProgress  # noqa: PLC0415

    line, elapsed, left = bars.BarColumn(24), bars.TimeElapsedColumn(), bars.TimeRemainingColumn()
    bar = FittingProgress(
        bars.TextColumn("{task.description}"), line, bars.MofNCompleteColumn(), elapsed, left,
        dispensable=(line, elapsed, left), console=Console(stderr=True), transient=True,
        get_time=time.monotonic,
    )  # fmt: skip
    bar.add_task(text, total=num_files)
    bar.tasks[0].start_time = started
    return bar
