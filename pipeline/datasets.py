"""The identity of a data set: name, counts and a digest of its index, wherever it lies on disk."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline.files import sha256_of
from transfer.config import CocoData, VocData


def folder_identity(name: str, root: Path) -> dict[str, Any]:
    """Return the identity of all files below `root`: their relative names and sizes.

    Raises:
        ValueError: the folder is missing or empty.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; data set {name} is expected there")
    files = sorted(_files(root, ""))
    if not files:
        raise ValueError(f"{root}: empty folder; data set {name} is expected there")
    return {"name": name, "num_files": len(files), "digest": _digest(files)}


def detection_identity(name: str, data: CocoData | VocData) -> dict[str, Any]:
    """Return the identity of a detection set: its annotations and its images' names and sizes.

    Raises:
        ValueError: a file or folder of the layout is missing.
    """
    index = _coco_index(name, data) if isinstance(data, CocoData) else _voc_index(name, data)
    images = data.images if isinstance(data, CocoData) else data.root / "JPEGImages"
    return {"index": index, **folder_identity(name, images)}


def _coco_index(name: str, data: CocoData) -> str:
    if not data.annotations.is_file():
        raise ValueError(
            f"{data.annotations}: no such file; data set {name} wants COCO's annotation file there"
        )
    return sha256_of(data.annotations)


def _voc_index(name: str, data: VocData) -> str:
    split = data.root / "ImageSets" / "Main" / f"{data.split}.txt"
    if not split.is_file():
        raise ValueError(f"{split}: no such file; data set {name} wants VOC's list of images there")
    digest = hashlib.sha256()
    try:
        lines = split.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{split}: not a text file; data set {name} wants names there") from None
    for line in lines:
        if line.strip():
            annotation = data.root / "Annotations" / f"{line.split()[0]}.xml"
            if not annotation.is_file():
                raise ValueError(f"{annotation}: no such file; {split} lists it")
            digest.update(annotation.read_bytes())
            digest.update(line.encode())
    return digest.hexdigest()


def _files(folder: Path, prefix: str) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                found += _files(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                found.append((prefix + entry.name, entry.stat().st_size))
    return found


def _digest(files: list[tuple[str, int]]) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()
