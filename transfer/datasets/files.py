"""The files of a detection set that are read, for loader, check and identity alike. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from transfer.config.data import CocoData, VocData
from transfer.datasets.findings import IMAGE_SUFFIXES, is_whole, path_fault, read_text
from transfer.files import sha256_of

Id = int | str


def index_file(data: CocoData | VocData) -> Path:
    """Return the file that lists a set's images: COCO's annotation file, VOC's split."""
    if isinstance(data, CocoData):
        return data.annotations
    return data.root / "ImageSets" / "Main" / f"{data.split}.txt"


def image_root(data: CocoData | VocData) -> Path:
    """Return the folder of a set's images."""
    return data.images if isinstance(data, CocoData) else data.root / "JPEGImages"


def split_names(data: VocData) -> list[str]:
    """Return the image names of a split that the check accepts.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text.
    """
    return read_text(index_file(data)).split()


def image_files(folder: Path, names: Iterable[str]) -> dict[str, list[Path]]:
    """Return the image files of each name: those of its stem with an image's suffix, in any case.

    Where there is none it is the `.jpg` of the layout, which then is missing.
    """
    listed: dict[Path, dict[str, list[Path]]] = {}
    files: dict[str, list[Path]] = {}
    for name in names:
        straight = folder / name
        if straight.parent not in listed:
            listed[straight.parent] = _image_stems(straight.parent)
        missing = [straight.with_name(f"{straight.name}.jpg")]
        files[name] = listed[straight.parent].get(straight.name, missing)
    return files


def _image_stems(folder: Path) -> dict[str, list[Path]]:
    stems: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            stems.setdefault(path.stem, []).append(path)
    return stems


def coco_images(annotations: bytes) -> list[tuple[Id, str]]:
    """Return id and file name of the images in COCO's JSON, as the check accepts them.

    What it refuses is left out, so that a damaged file has none.
    """
    try:
        content = json.loads(annotations.decode("utf-8"))
    except (ValueError, RecursionError):
        return []
    entries = content.get("images") if isinstance(content, dict) else None
    images: dict[Id, str] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and path_fault(entry.get("file_name")) is None:
            number = entry.get("id")
            if is_whole(number) or isinstance(number, str):
                images.setdefault(number, str(entry["file_name"]))
    return list(images.items())


def part_ids(ids: Iterable[Id], fraction: float, seed: int) -> set[Id]:
    """Return a fraction of the image ids, drawn by the hash of seed and id.

    Nothing but the ids and the seed decides: not the order, no generator of any library. The result
    lies within that of a larger fraction.
    """

    def draw(number: Id) -> bytes:
        return hashlib.sha256(f"{seed}:{number}".encode()).digest()

    drawn = sorted(ids, key=draw)
    return set(drawn[: max(1, round(fraction * len(drawn)))])


def content_digest(data: CocoData | VocData) -> str:
    """Return a digest of the content of a set that the check accepts, wherever it lies.

    Images count by name and size, so that 118,000 of them cost a second and not all their bytes.
    """
    digest = hashlib.sha256(
        data.model_dump_json(exclude={"annotations", "images", "root", "identity"}).encode()
    )
    annotations, root = [index_file(data)], image_root(data)
    if isinstance(data, CocoData):
        images = [root / name for _, name in coco_images(data.annotations.read_bytes())]
    else:
        names = split_names(data)
        annotations += [data.root / "Annotations" / f"{name}.xml" for name in names]
        images = [files[0] for files in image_files(root, names).values()]
    for path in annotations:
        digest.update(f"{sha256_of(path)}\n".encode())
    for path in images:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
