"""The identity of data: digests of the labels and images that are read, wherever they lie on disk.

Names of data sets are labels. Which files are read is said by `pretrain.data.splits` and
`transfer.config.data`, from which the loaders take it too; nothing else enters.

The plan takes what a stage reads, besides results of other stages, into its identity, which
`config.json` keeps; the worker takes it again when the stage starts and before its manifest, and
compares.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from pipeline.plan.compatibility import dataset_names
from pipeline.stages.content_index import Level, file_digest, file_digests, kept_json
from pipeline.stages.stage import CHECKPOINT, DATA, TABLES, WORLD_SIZE, differences, identity_of
from pipeline.stages.staleness import by_name, data_parts
from pretrain.data.splits import (
    FOLDER_FORMATS,
    Split,
    image_names,
    label_file,
    split_files,
    split_folder,
)
from transfer.checkpoints.other_files import files_read, tables_sha256
from transfer.config.data import (
    CocoData,
    DetectionData,
    VocData,
    coco_images,
    image_files,
    part_ids,
    path_fault,
    split_names,
)
from transfer.config.finetune import FinetuneConfig
from transfer.files import few, near_path, refusal, share_of

if TYPE_CHECKING:
    from pretrain.config.data import DataConfig

SPLITS: dict[str, tuple[Split, ...]] = {"pretrain": ("pretrain",), "probe": ("train", "test")}
PUBLISHED = ("imagenet", "imagenet100", "tiny-imagenet")  # measured on as they are
DETECTION: TypeAdapter[CocoData | VocData] = TypeAdapter(DetectionData)
Identity = dict[str, Any]


def image_identity(data: DataConfig, splits: tuple[Split, ...] = ("pretrain",)) -> Identity:
    """Return the identity of what the splits of a set of images are read from, in any format.

    Raises:
        ValueError: the data are missing, incomplete or cannot be read.
    """
    return {split: _split_identity(data, split) for split in splits}


def _split_identity(data: DataConfig, split: Split) -> Identity:
    if data.format not in FOLDER_FORMATS:  # binary files hold labels too, so they are read whole
        files = split_files(data, split)
        return {"images": _part(files[0].parent, [file.name for file in files])}
    folder = split_folder(data, split)
    identity = {"images": _part(folder, image_names(folder)[0], data.identity)}
    if labels := label_file(data, split):
        identity["labels"] = _part(labels.parent, [labels.name])
    return identity


def copies_in_test(data: DataConfig, content: Identity) -> str | None:
    """Return that test images of a set in class folders are copies of its training images, or None.

    `content` is the identity of both splits, by which the answer is kept.
    """
    if data.format != "imagefolder" or not {"train", "test"} <= content.keys():
        return None
    train, test = split_folder(data, "train"), split_folder(data, "test")

    def compute() -> list[tuple[str, str]]:
        names = [image_names(folder)[0] for folder in (train, test)]
        digests = [file_digests(train, names[0], data.identity)]
        digests.append(file_digests(test, names[1], data.identity))
        trained = dict(zip(digests[0], names[0], strict=True))
        pairs = zip(digests[1], names[1], strict=True)
        return [(name, trained[digest]) for digest, name in pairs if digest in trained]

    images = [content[split]["images"] for split in ("train", "test")]
    copies = kept_json(f"copies of {images[0]['digest']} in {images[1]['digest']}", compute)
    if not copies:
        return None
    named = [f"{test.name}/{one} is a copy of {train.name}/{other}" for one, other in copies]
    line = f"{test}: {share_of(len(copies), images[1]['num_files'], 'image', 'is', 'are')} trained "
    line += f"on too ({few(named)})"
    remedy = "take them out of one of the two"
    return f"{line}; {'they are measured on as published' if data.name in PUBLISHED else remedy}"


def count_images(data: DataConfig | CocoData | VocData) -> int | None:
    """Return how many images a pretraining or an evaluation reads of a set, listed and not read.

    None where they are not there, or lie in binary files.
    """
    with contextlib.suppress(OSError, ValueError):
        if isinstance(data, VocData):
            return len(split_names(data)) or None
        if isinstance(data, CocoData):
            return len(coco_images(data.annotations.read_bytes())) or None
        if data.format in FOLDER_FORMATS:
            return len(image_names(split_folder(data, "pretrain"))[0])
    return None


def detection_identity(name: str, data: CocoData | VocData) -> Identity:
    """Return the identity of a detection set: its annotations, and the images that these name.

    `name` is for messages. An image that is not there has no digest; of it, and of entries that are
    broken, the check before the start speaks.

    Raises:
        ValueError: a file or folder of the layout is missing or cannot be read.
    """
    index, images = data.index_file, data.image_root
    if not index.is_file():
        what = "COCO's annotation file" if isinstance(data, CocoData) else "VOC's list of images"
        problem = "is a folder" if index.is_dir() else "no such file"
        hint = near_path(index)
        raise ValueError(f"{index}: {problem}; data set {name} wants {what} there{hint}")
    if images.is_file():
        raise ValueError(f"{images}: is a file; data set {name} is expected there")
    if not images.is_dir():
        hint = near_path(images)
        raise ValueError(f"{images}: no such folder; data set {name} is expected there{hint}")
    if next(images.iterdir(), None) is None:
        raise ValueError(f"{images}: empty folder; data set {name} is expected there")
    if isinstance(data, CocoData):
        annotations, names = _coco(data)
    else:
        annotations, names = _voc(name, data)
    return {"annotations": annotations, "images": _part(images, names, data.identity)}


def _coco(data: CocoData) -> tuple[Identity, list[str]]:
    """Return the identity of the annotation file, and the names of the images that are used."""
    digest = file_digest(data.annotations)

    def compute() -> list[tuple[int | str, str]]:
        content = data.annotations.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"{data.annotations}: changed while it was read; try again")
        return coco_images(content)

    images = kept_json(f"images of {digest}", compute)
    if data.fraction is not None and images:
        used = part_ids((number for number, _ in images), data.fraction, data.subset_seed)
        images = [image for image in images if image[0] in used]
    return _part_of(["annotations"], [digest]), list(dict.fromkeys(name for _, name in images))


def _voc(name: str, data: VocData) -> tuple[Identity, list[str]]:
    """Return the identity of a split's annotations in its order, and the names of its images."""
    split, folder = data.index_file, data.root / "Annotations"
    try:
        names = [name for name in split_names(data) if path_fault(name) is None]
    except (OSError, ValueError):
        raise ValueError(f"{split}: not a text file; data set {name} wants names there") from None
    annotations = [f"{each}.xml" for each in names]
    digests = file_digests(folder, annotations)
    for annotation, digest in zip(annotations, digests, strict=True):
        if digest is None:
            raise ValueError(f"{folder / annotation}: no such file; {split} lists it")
    images = data.image_root
    files = [str(file) for files in image_files(images, names).values() for file in files]
    below = len(str(images)) + 1
    return _part_of(annotations, digests), [file[below:] for file in files]


def _part(root: Path, names: Sequence[str], level: Level = "content") -> Identity:
    """Return the identity of the files of these names below `root`, in this order."""
    return _part_of(names, file_digests(root, names, level), level)


def _part_of(
    names: Sequence[str], digests: Sequence[str | None], level: Level = "content"
) -> Identity:
    listed = json.dumps(list(zip(names, digests, strict=True)))
    return {
        "by": level,
        "num_files": sum(digest is not None for digest in digests),
        "digest": hashlib.sha256(listed.encode()).hexdigest(),
    }


def content_read(kind: str, settings: dict[str, Any]) -> Identity:
    """Return the identity of all data that a stage with these settings reads, now.

    What a stage takes from those before it is not among them.

    Raises:
        ValueError: one line of what is missing or cannot be read.
    """
    if "checkpoint" in settings:
        digest = checkpoint_digest(Path(settings["checkpoint"]))
        return {CHECKPOINT: digest, TABLES: tables_sha256()}
    if "datasets" in settings:
        sets = {
            name: DETECTION.validate_python(data) for name, data in settings["datasets"].items()
        }
        return {name: detection_identity(name, data) for name, data in sets.items()}
    if settings.get("data") is None:
        return {}
    from pretrain.config.data import DataConfig  # noqa: PLC0415  (most plans and commands need none)

    return image_identity(DataConfig.model_validate(settings["data"]), SPLITS[kind])


def checkpoint_digest(path: Path) -> str:
    """Return the sha256 of a checkpoint; of several files, as shards, that of theirs by name.

    Raises:
        ValueError: it is not there, or no file or folder of weights.
    """
    try:
        files = files_read(path)
    except (ValueError, OSError) as error:
        raise ValueError(refusal(path, error)) from None
    listed = [(file.name, file_digest(file)) for file in files]
    if len(listed) == 1:
        return listed[0][1]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def cheaper_parts(content: Any) -> list[str]:
    """Return the parts of an identity of data that are known by less than their content.

    Example:
        >>> cheaper_parts({"train": {"images": {"by": "blocks", "num_files": 9, "digest": "0f"}}})
        ['train images: 9 files by size, first and last 16 KiB']
    """
    return [
        f"{name}: {part['num_files']:,} files by size, first and last 16 KiB"
        for name, part in data_parts(content).items()
        if part.get("by") == "blocks"
    ]


def set_content(name: str, data: CocoData | VocData) -> Identity:
    """Return the identity of a detection set and of how it is read, under whatever name.

    Raises:
        ValueError: a file or folder of the layout is missing.
    """
    return {"settings": identity_of(data), **detection_identity(name, data)}


def by_use(task: dict[str, Any], sets: Mapping[str, Identity | None]) -> dict[str, Any]:
    """Return the sets of a detectron2 config in the order of its DATASETS.TRAIN and TEST."""
    names, _ = dataset_names(task, Path())
    return {use: [sets.get(name) for name in listed] for use, listed in names.items()}


def contents_of(kind: str, settings: dict[str, Any]) -> Identity:
    """Return the part of a stage's identity that is read from its data and its checkpoint.

    Raises:
        ValueError: data or the checkpoint are missing.
    """
    if kind == "finetune":
        config = FinetuneConfig.model_validate(settings)
        sets = {name: set_content(name, data) for name, data in config.datasets.items()}
        return {DATA: by_use(config.detectron2, sets)}
    read = content_read(kind, settings)
    return read if CHECKPOINT in read or not read else {DATA: read}


def check_contents(kind: str, planned: Identity, settings: dict[str, Any]) -> None:
    """Compare the identity that a stage was planned with with what it really reads.

    Raises:
        ValueError: they differ, with both values.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if planned.get(WORLD_SIZE, processes) != processes:
        raise ValueError(
            f"planned for {planned[WORLD_SIZE]} processes (resources.{kind}), started by "
            f"{processes}; results depend on their number: plan with it, or start as many"
        )
    if not planned.keys() & {DATA, CHECKPOINT}:
        return
    read = contents_of(kind, settings)
    sides: list[Identity] = [{key: side.get(key) for key in read} for side in (planned, read)]
    if DATA in read:
        sides = [dict(by_name(settings, side[DATA])) for side in sides]
    lines = differences(sides[0], sides[1], names=("planned", "read"))
    if lines:
        where = settings.get("checkpoint") or "data"
        if TABLES in read and planned[CHECKPOINT] == read[CHECKPOINT]:
            where = "the tables of checkpoint families"
        raise ValueError(
            f"{where} changed between the plan and this stage ({'; '.join(lines)}); run again, to "
            "plan with what is there now, or put back what was planned with"
        )
