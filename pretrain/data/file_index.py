"""Names of the files below a folder, and a digest of names and sizes. Imports no torch.

Listing a million files takes half a minute on a network disk, so the index of a folder of at least
20,000 files is kept in `$XDG_CACHE_HOME/whitening-transfer-benchmark` (`~/.cache` by default). A
kept index counts as long as every folder has the modification time that it had (it changes when an
entry appears, goes or is renamed) and 1,000 files spread over all have their sizes and times; a
file elsewhere that was overwritten in place goes unnoticed until the index is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.runtime.files import whole_file

CACHED_FROM = 20_000
DIGEST_CACHED_FROM = 2_000
HASHED_BYTES_PER_FILE = 2**14  # reading so many bytes takes as long as one small file
NUM_SAMPLES = 1_000
SETTLED_S = 2.0  # a folder that changed just now may change again within one tick of its clock
VERSION = 1
Entry = tuple[str, int]


@dataclass(frozen=True)
class FolderSummary:
    """Number of files below a folder and the digest of their sorted names and sizes."""

    num_files: int
    digest: str


def folder_summary(root: Path) -> FolderSummary:
    """Return the summary of all files below `root`, from the cache where that is still right.

    Raises:
        ValueError: the folder is missing or cannot be listed.
    """
    header = _valid_header(root) or _build(root)[0]
    return FolderSummary(header["num_files"], header["digest"])


def folder_names(root: Path) -> list[str]:
    """Return the names of all files below `root`, relative to it, as sorted paths are.

    Raises:
        ValueError: the folder is missing or cannot be listed.
    """
    header = _valid_header(root)
    if header is not None:
        try:
            content = _cache_file(root, "names").read_bytes()
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() == header["names_sha256"]:
            return [os.fsdecode(name) for name in content.split(b"\0")]
    return _build(root)[1]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, of 32 MB or more kept with its size and modification time."""

    def compute() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return kept_digest([path], path.stat().st_size // HASHED_BYTES_PER_FILE, compute)


def kept_digest(sources: list[Path], num_files: int, compute: Callable[[], str]) -> str:
    """Return the digest that `compute` reads from `sources`, kept while their stamps stay.

    Fewer than 2,000 files (`num_files`) are read anew each time.
    """
    if num_files < DIGEST_CACHED_FROM:
        return compute()
    key = "|".join(str(source.absolute()) for source in sources)
    stamps = [_stamp(source) for source in sources]
    place = _cache_file(Path(key), "digest")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(place.read_bytes())
        if kept["sources"] == key and kept["stamps"] == stamps and len(kept["digest"]) == 64:
            return str(kept["digest"])
    digest = compute()
    settled = time.time() - max(mtime for _, mtime in stamps) / 1e9 > SETTLED_S
    if settled and stamps == [_stamp(source) for source in sources]:
        content = {"sources": key, "stamps": stamps, "digest": digest}
        _write_whole(place, json.dumps(content).encode())
    return digest


def _write_whole(path: Path, content: bytes) -> None:
    """Write the whole file; where the folder cannot be written nothing is kept."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(content)


def _cache_file(root: Path, kind: str) -> Path:
    key = hashlib.sha256(os.fsencode(str(root.absolute()))).hexdigest()[:24]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "whitening-transfer-benchmark", f"{key}.{kind}")


def _build(root: Path) -> tuple[dict[str, Any], list[str]]:
    """List `root`, keep the index if it is large, and return its header and sorted names."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    started = time.time()
    folders: dict[str, int] = {}
    try:
        files = _scan(root, "", folders)
    except OSError as error:
        raise ValueError(f"{root}: cannot be listed ({error})") from None
    names = [name for name, _ in sorted(files, key=lambda file: file[0].split("/"))]
    listed = os.fsencode("\0".join(names))
    header = {
        "version": VERSION,
        "root": str(root.absolute()),
        "num_files": len(files),
        "digest": hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest(),
        "names_sha256": hashlib.sha256(listed).hexdigest(),
    }
    if len(files) >= CACHED_FROM and started - max(folders.values()) / 1e9 > SETTLED_S:
        chosen = names[:: -(-len(names) // NUM_SAMPLES)]
        kept = {"folders": folders, "sample": [[name, *_stamp(root / name)] for name in chosen]}
        _write_whole(_cache_file(root, "names"), listed)
        _write_whole(_cache_file(root, "json"), json.dumps(header | kept).encode())
    return header, names


def _scan(folder: Path, prefix: str, folders: dict[str, int]) -> list[Entry]:
    folders[prefix] = folder.stat().st_mtime_ns
    files: list[Entry] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                files += _scan(Path(entry.path), f"{prefix}{entry.name}/", folders)
            else:
                files.append((prefix + entry.name, entry.stat().st_size))
    return files


def _valid_header(root: Path) -> dict[str, Any] | None:
    """Return the kept header if it is whole and the folder is as it was; else None."""
    try:
        header: dict[str, Any] = json.loads(_cache_file(root, "json").read_bytes())
        whole = header["version"] == VERSION and header["root"] == str(root.absolute())
        same = all(
            os.stat(f"{root}/{name}").st_mtime_ns == mtime  # noqa: PTH116 (a Path each is slow)
            for name, mtime in header["folders"].items()
        )
        sampled = all(_stamp(root / name) == stamp for name, *stamp in header["sample"])
        known = header["num_files"] and header["digest"] and header["names_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return header if whole and same and sampled and known else None


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
