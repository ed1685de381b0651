"""The files of a detection set that are read, for loader, check and identity alike. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from transfer.config.data import CocoData, VocData
from transfer.datasets.findings import IMAGE_SUFFIXES, is_whole, path_fault, read_text
from transfer.files import no_collection, sha256_of

Id = int | str
SPACE = re.compile(r"[ \t\n\r]*")
AFTER_ENTRY = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")
BEFORE_LIST = re.compile(r"[ \t\n\r]*:[ \t\n\r]*(?=\[)")


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
        with no_collection():
            text = annotations.decode("utf-8")
            entries: Any = list_under(text, "images") if text.rstrip().endswith("}") else None
            if entries is None:
                content = json.loads(text)
                entries = content.get("images") if isinstance(content, dict) else None
    except (ValueError, RecursionError):
        return []
    images: dict[Id, str] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and path_fault(entry.get("file_name")) is None:
            number = entry.get("id")
            if is_whole(number) or isinstance(number, str):
                images.setdefault(number, str(entry["file_name"]))
    return list(images.items())


def coco_classes(path: Path) -> list[str] | None:
    """Return the class names of COCO's annotation file in detectron2's order, that of their ids.

    None where reading the whole file has to tell them.
    """
    with no_collection():
        entries = list_under(read_text(path), "categories")
    names: dict[int, str] = {}
    for entry in entries or ():
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (0, 0)
        if not is_whole(number) or not isinstance(name, str) or number in names:
            return None
        names[number] = name
    return [names[number] for number in sorted(names)] or None


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
        names = [name for _, name in coco_images(data.annotations.read_bytes())]
        images = [os.path.join(root, name) for name in names]  # noqa: PTH118  (a Path each is slow)
    else:
        names = split_names(data)
        annotations += [data.root / "Annotations" / f"{name}.xml" for name in names]
        images = [str(files[0]) for files in image_files(root, names).values()]
    for path in annotations:
        digest.update(f"{sha256_of(path)}\n".encode())
    for image in images:
        line = f"{os.path.basename(image)} {os.stat(image).st_size}\n"  # noqa: PTH116, PTH119
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()
