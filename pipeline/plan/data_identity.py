"""The identity of a data set: name, counts and a digest of its index, wherever it lies on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, get_args

from pretrain.config.data import DataConfig
from pretrain.data.file_index import file_sha256, folder_summary, kept_digest
from pretrain.data.splits import Split, split_files, split_folder
from transfer.config.data import CocoData, VocData

FOLDER_FORMATS = ("folder", "imagefolder")


def image_identity(data: DataConfig, splits: tuple[Split, ...] = ("pretrain",)) -> dict[str, Any]:
    """Return the identity of what the splits of a set of images are read from, in any format.

    A folder's is that of its files' names and sizes, a binary file's that of its content.

    Raises:
        ValueError: the data are missing or incomplete.
    """
    if data.format in FOLDER_FORMATS:
        folders = dict.fromkeys(split_folder(data, split) for split in splits)
        parts = [folder_identity(data.name, folder) for folder in folders]
        return parts[0] if len(parts) == 1 else {"name": data.name, "folders": parts}
    files = dict.fromkeys(file for split in splits for file in split_files(data, split))
    contents = [(file.name, file.stat().st_size, file_sha256(file)) for file in files]
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    return {"name": data.name, "num_files": len(contents), "digest": digest}


def folder_identity(name: str, root: Path) -> dict[str, Any]:
    """Return the identity of all files below `root`: their relative names and sizes.

    Raises:
        ValueError: the folder is missing or empty.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; data set {name} is expected there")
    summary = folder_summary(root)
    if not summary.num_files:
        raise ValueError(f"{root}: empty folder; data set {name} is expected there")
    return {"name": name, "num_files": summary.num_files, "digest": summary.digest}


def detection_identity(name: str, data: CocoData | VocData) -> dict[str, Any]:
    """Return the identity of a detection set: its annotations and its images' names and sizes.

    Raises:
        ValueError: a file or folder of the layout is missing.
    """
    index = index_file(data)
    if not index.is_file():
        what = "COCO's annotation file" if isinstance(data, CocoData) else "VOC's list of images"
        raise ValueError(f"{index}: no such file; data set {name} wants {what} there")
    if isinstance(data, CocoData):
        return {"index": file_sha256(index), **folder_identity(name, data.images)}
    digest = _voc_digest(name, index, data.root / "Annotations")
    return {"index": digest, **folder_identity(name, data.root / "JPEGImages")}


def index_file(data: CocoData | VocData) -> Path:
    """Return the file that lists a set's images."""
    if isinstance(data, CocoData):
        return data.annotations
    return data.root / "ImageSets" / "Main" / f"{data.split}.txt"


def _voc_digest(name: str, split: Path, folder: Path) -> str:
    """Return the digest of a split's lines and of the annotations in `folder` that they name."""
    try:
        lines = split.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{split}: not a text file; data set {name} wants names there") from None
    names = [line for line in lines if line.strip()]
    return kept_digest(
        [split, folder], len(names), lambda: _digest_of_annotations(split, folder, names)
    )


def _digest_of_annotations(split: Path, folder: Path, lines: list[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        annotation = folder / f"{line.split()[0]}.xml"
        if not annotation.is_file():
            raise ValueError(f"{annotation}: no such file; {split} lists it")
        digest.update(annotation.read_bytes())
        digest.update(line.encode())
    return digest.hexdigest()


def files_read(settings: dict[str, Any]) -> list[Path]:
    """Return the files and folders that a stage of these settings reads, but for its inputs'."""
    paths = [Path(settings["checkpoint"])] if "checkpoint" in settings else []
    for data in settings.get("datasets", {}).values():
        paths += [Path(data[key]) for key in ("annotations", "images", "root") if key in data]
    for section in (settings, settings.get("probe") or {}):
        if section.get("data") is not None:
            paths += _image_sources(DataConfig.model_validate(section["data"]))
    return list(dict.fromkeys(paths))


def _image_sources(data: DataConfig) -> list[Path]:
    """Return the files or folders of all splits that are there."""
    paths = []
    for split in get_args(Split):
        with contextlib.suppress(ValueError):  # not every set has every split
            if data.format in FOLDER_FORMATS:
                paths.append(split_folder(data, split))
            else:
                paths += split_files(data, split)
    return paths
