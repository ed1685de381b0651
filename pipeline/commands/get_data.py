"""`tools/get_data.py`: public data sets in the folders that the recipes name, whole or not at all.

Archives are fetched into `.downloads` of the folder, checked, and unpacked beside the place that
what is in them takes by a rename. What was killed begins again there: an archive goes on, what was
unpacked by half is removed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TransferSpeedColumn,
)

from pipeline.downloads.download import download
from pipeline.downloads.published_sets import SETS, Archive, Part
from pipeline.downloads.unpack import unpack
from pipeline.stages.files import size_of, size_text, unknown
from pipeline.stages.run_folder import LockedError, lock
from pretrain.runtime.bars import FittingProgress

DOWNLOADS = ".downloads"


def get_data(
    names: Iterable[str],
    folder: Path,
    console: Console,
    *,
    mirror: str | None = None,
    keep_archives: bool = False,
    sets: Mapping[str, tuple[Part, ...]] = SETS,
) -> None:
    """Bring the sets to `folder`; without names print the sizes of all there are.

    Args:
        names: of `sets`.
        folder: what the recipes call `datasets`.
        console: is told sizes first, then what is done.
        mirror: where archives lie under their own names, instead of their homes.
        keep_archives: leaves them in `.downloads`.
        sets: parts of each set.

    Raises:
        ValueError: something for the user to fix, in one line.
        OSError: a file cannot be written.
    """
    names = list(dict.fromkeys(names))
    if faults := [unknown("data set", name, sets) for name in names if name not in sets]:
        raise ValueError("; ".join(faults))
    if mirror is not None and urlsplit(mirror).scheme not in ("http", "https"):
        raise ValueError(f"--mirror {mirror}: wanted a URL that begins with http:// or https://")
    missing = [part for name in names for part in sets[name] if not _is_there(part, folder)]
    for name in names or sets:
        num_bytes = sum(archive.num_bytes for part in sets[name] for archive in part.archives)
        unpacked = size_text(sum(part.num_bytes for part in sets[name]))
        state = "" if set(sets[name]) & set(missing) or not names else ", is there already"
        _say(console, f"{name:>14}: {size_text(num_bytes)} to fetch, {unpacked} unpacked{state}")
    if not names:
        return
    _check_space(missing, folder, console, keep_archives)
    (folder / DOWNLOADS).mkdir(parents=True, exist_ok=True)
    try:
        with lock(folder / DOWNLOADS / "lock"):
            for part in (part for name in names for part in sets[name]):
                try:
                    if not _is_there(part, folder):
                        _get(part, folder, console, mirror)
                finally:
                    _remove(_unpacking(part, folder))
                for archive in part.archives if not keep_archives else ():
                    (folder / DOWNLOADS / archive.name).unlink(missing_ok=True)
    except LockedError as holder:
        raise ValueError(f"{folder}: {holder} gets data there; wait for its end") from None


def _is_there(part: Part, folder: Path) -> bool:
    """Return whether a part is there.

    Raises:
        ValueError: something else has its name, or files of it are not there.
    """
    place = folder / part.folder
    if not place.is_dir():
        if place.exists() or place.is_symlink():
            raise ValueError(f"{place}: is there and no folder; move it away")
        return False
    if not any(place.iterdir()):
        return False
    if lacking := [name for name in part.files if not (place / name).exists()]:
        raise ValueError(f"{place}: is there without {', '.join(lacking)}; move it away")
    return True


def _check_space(
    missing: Iterable[Part], folder: Path, console: Console, keep_archives: bool
) -> None:
    """Print how much space is needed at most and how much is free.

    Raises:
        ValueError: less is free.
    """
    needed = grown = 0  # at most at any time, and when the parts so far are there
    for part in missing:
        paths = [folder / DOWNLOADS / archive.name for archive in part.archives]
        num_here = sum(path.stat().st_size for path in paths if path.is_file())
        rest = sum(archive.num_bytes for archive in part.archives) - num_here
        peak = grown + rest + part.num_bytes - size_of(_unpacking(part, folder))
        needed = max(needed, peak)
        grown += part.num_bytes + (rest if keep_archives else -num_here)
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{size_text(needed)} are needed at most, {size_text(free)} are free"
    if needed > free:
        raise ValueError(f"{folder}: {text}; make room, get fewer sets, or take another folder")
    if needed:
        _say(console, f"{folder}: {text}")


def _get(part: Part, folder: Path, console: Console, mirror: str | None) -> None:
    """Fetch the archives of a part, unpack them beside its place, and give it that place."""
    paths = [folder / DOWNLOADS / archive.name for archive in part.archives]
    for archive, path in zip(part.archives, paths, strict=True):
        url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
        num_here = path.stat().st_size if path.is_file() else 0
        source = f"from {url}{f', from byte {num_here:,} on' if num_here else ''}"
        _say(console, f"{archive.name}: {'here' if num_here == archive.num_bytes else source}")
        with _progress(archive, console) as show:
            download(archive, url, path, show)
    place, unpacking = folder / part.folder, _unpacking(part, folder)
    _remove(unpacking)
    unpacking.mkdir(parents=True)
    for path in paths:
        _say(console, f"{path.name}: unpacking")
        unpack(path, unpacking, part.num_bytes)
    whole = unpacking / part.inside
    if lacking := [name for name in ("", *part.files) if not (whole / name).exists()]:
        names = ", ".join(str(Path(part.inside, name)) for name in lacking)
        raise ValueError(f"{paths[-1]}: holds no {names}: another file; remove it")
    whole.rename(place)
    _say(console, f"{place}: done")


@contextmanager
def _progress(archive: Archive, console: Console) -> Iterator[Callable[[int], None]]:
    """Give what shows the bytes that are there: a bar, or elsewhere a line every tenth."""
    bar, speed = BarColumn(), TransferSpeedColumn()
    columns = (TextColumn(archive.name), bar, DownloadColumn(), speed)
    tenths = 0

    def show(size: int) -> None:
        nonlocal tenths
        progress.update(task, completed=size)
        if not console.is_terminal and size * 10 // archive.num_bytes > tenths:
            tenths = size * 10 // archive.num_bytes
            of_all = f"{size_text(size)} of {size_text(archive.num_bytes)}"
            _say(console, f"{archive.name}: {of_all}, {time.strftime('%H:%M:%S')}")

    with FittingProgress(
        *columns, dispensable=(bar, speed), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=archive.num_bytes)
        yield show


def _unpacking(part: Part, folder: Path) -> Path:
    place = folder / part.folder
    return place.with_name(f".{place.name}.unpacking")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
