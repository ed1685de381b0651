"""Archives of strangers unpacked: plain files and folders alone, and nothing outside a folder."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from stat import S_IFDIR, S_IFMT, S_IFREG
from typing import IO, NamedTuple

from pipeline.stages.files import one_line, printable, size_text

BLOCK = 1 << 20
# What zipfile and tarfile raise; of what is encrypted or packed by an odd method a RuntimeError.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


class Entry(NamedTuple):
    """An entry of an archive; links and devices are not plain, folders have nothing to open."""

    name: str
    is_plain: bool
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Write what is in a zip or tar file below `folder`; a later entry of a name takes its place.

    `folder` is new: it holds no links but those that somebody else put there. Rights, owners and
    times are not taken over.

    Raises:
        ValueError: an entry is a link, a device or outside the folder, there is more than
            `max_bytes`, or the archive is damaged.
    """
    left = max_bytes
    try:
        for entry in _entries(archive):
            parts = PurePosixPath(entry.name).parts
            if not entry.is_plain or ".." in parts or entry.name.startswith("/"):
                kind = "outside the folder" if entry.is_plain else "a link or a device"
                raise ValueError(f"{archive}: holds {printable(entry.name)!r}, {kind}; refused")
            target = folder.joinpath(*parts)
            (target if entry.is_folder else target.parent).mkdir(parents=True, exist_ok=True)
            source = None if entry.is_folder else entry.open()
            if source is None:
                continue
            with source, target.open("wb") as file:
                while block := source.read(BLOCK):
                    left -= len(block)
                    if left < 0:
                        raise ValueError(
                            f"{archive}: holds more than {size_text(max_bytes)}; refused"
                        )
                    file.write(block)
    except DAMAGE as error:
        raise ValueError(f"{archive}: damaged ({one_line(error)}); remove it") from None


def _entries(archive: Path) -> Iterator[Entry]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                is_plain = S_IFMT(info.external_attr >> 16) in (0, S_IFREG, S_IFDIR)
                yield Entry(info.filename, is_plain, info.is_dir(), partial(zipped.open, info))
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                is_plain = member.isreg() or member.isdir()
                yield Entry(member.name, is_plain, member.isdir(), partial(tar.extractfile, member))
