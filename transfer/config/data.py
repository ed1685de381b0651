"""Detection sets: their settings, the files and images that these name, the known sets. No torch.

Fields marked with `left_out(why)` cannot change a result and stay out of a stage's signature. A
set's key `identity` says how its images are known: by `content`, or by size, first and last 16 KiB
(`blocks`); the identity of the data holds it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from transfer.files import is_whole, list_under, no_collection, read_text, sha256_of

Level = Literal["content", "blocks"]
# of an image, in COCO's AP as it is published; detectron2's TEST.DETECTIONS_PER_IMAGE for all sets
MAX_DETECTIONS = 100
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
DIGIT_CLASSES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"
)  # fmt: skip

Id = int | str  # of an image in COCO's layout
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".jp2")
)


def left_out(why: str) -> dict[str, Any]:
    """Return the mark of a field that is no part of a stage's identity, with the reason."""
    return {"identity": False, "why": why}


PATH = left_out("a path; the files enter by content")
LEVEL = left_out("the identity of the data says it")


class Section(BaseModel):
    """A frozen part of a config that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class CocoData(Section):
    """A detection set in COCO's layout; class names come from the annotation file.

    `fraction` keeps that part of the images, for training: the same ones wherever the set lies,
    drawn by `subset_seed`; for one seed a smaller part lies within a larger one.
    """

    format: Literal["coco"] = "coco"
    """COCO's layout"""
    annotations: Path = Field(json_schema_extra=PATH)
    """the JSON file, relative to the working directory"""
    images: Path = Field(json_schema_extra=PATH)
    """the folder of images, relative to the working directory"""
    identity: Level = Field(default="content", json_schema_extra=LEVEL)
    """how image files are known: by every byte, or (`blocks`) by size, first and last 16 KiB"""
    fraction: float | None = Field(default=None, gt=0, lt=1)
    """part of the images that is kept, for training, above 0 and below 1; all unless given"""
    subset_seed: int = Field(default=0, ge=0)
    """draws that part"""

    def ap_rule(self, num_kept: int = MAX_DETECTIONS) -> str:
        """Return in words by which rule AP is measured, of `num_kept` detections an image."""
        return f"COCO's, of at most {min(num_kept, MAX_DETECTIONS)} detections an image"

    @property
    def index_file(self) -> Path:
        """The file that lists the images."""
        return self.annotations

    @property
    def image_root(self) -> Path:
        """The folder of the images."""
        return self.images

    def under(self, root: Path) -> CocoData:
        """Return the same set with its paths taken below `root`."""
        return self.model_copy(
            update={"annotations": root / self.annotations, "images": root / self.images}
        )


class VocData(Section):
    """A detection set in Pascal VOC's layout; the year decides how AP is integrated.

    2007 takes the mean over 11 recalls, 2012 the area under the curve.
    """

    format: Literal["voc"] = "voc"
    """Pascal VOC's layout"""
    root: Path = Field(json_schema_extra=PATH)
    """the folder that holds `JPEGImages`, `Annotations` and `ImageSets/Main`, relative to the
    working directory"""
    identity: Level = Field(default="content", json_schema_extra=LEVEL)
    """how image files are known: by every byte, or (`blocks`) by size, first and last 16 KiB"""
    split: str
    """the name of a list in `ImageSets/Main`, without `.txt`"""
    year: Literal[2007, 2012] = 2007
    """the rule of AP: 2007 takes the mean of 11 precisions, 2012 the area under the curve"""
    class_names: tuple[str, ...] = VOC_CLASSES
    """the classes, in the order of the detector's outputs; VOC's 20 unless given"""

    def ap_rule(self, num_kept: int = MAX_DETECTIONS) -> str:
        """Return in words by which rule AP is measured, of `num_kept` detections an image.

        The rule counts any number of them; the usual one goes without saying.
        """
        rule = "mean of 11 precisions" if self.year == 2007 else "area under the curve"
        rule = f"VOC {self.year}'s, the {rule}"
        is_usual = num_kept == MAX_DETECTIONS
        return rule if is_usual else f"{rule}, of at most {num_kept} detections an image"

    @property
    def index_file(self) -> Path:
        """The file that lists the images."""
        return self.root / "ImageSets" / "Main" / f"{self.split}.txt"

    @property
    def image_root(self) -> Path:
        """The folder of the images."""
        return self.root / "JPEGImages"

    def under(self, root: Path) -> VocData:
        """Return the same set with its paths taken below `root`."""
        return self.model_copy(update={"root": root / self.root})


DetectionData = Annotated[CocoData | VocData, Field(discriminator="format")]


def _voc(year: Literal[2007, 2012], split: str) -> VocData:
    return VocData(root=Path(f"VOC{year}"), split=split, year=year)


def _coco(split: str, prefix: str = "") -> CocoData:
    base = Path(prefix) / "coco"
    return CocoData(annotations=base / f"annotations/instances_{split}.json", images=base / split)


def _digits_voc(split: str) -> VocData:
    return VocData(root=Path("digits/VOC2007"), split=split, class_names=DIGIT_CLASSES)


# Names as detectron2 gives them, and the embedded digits; paths are below $DETECTRON2_DATASETS.
KNOWN_DATASETS: dict[str, CocoData | VocData] = {
    "voc_2007_trainval": _voc(2007, "trainval"),
    "voc_2007_train": _voc(2007, "train"),
    "voc_2007_val": _voc(2007, "val"),
    "voc_2007_test": _voc(2007, "test"),
    "voc_2012_trainval": _voc(2012, "trainval"),
    "voc_2012_train": _voc(2012, "train"),
    "voc_2012_val": _voc(2012, "val"),
    "coco_2017_train": _coco("train2017"),
    "coco_2017_val": _coco("val2017"),
    **{  # 1 and 10 % of the images, five draws
        f"coco_2017_train_{percent}pct_seed{seed}": _coco("train2017").model_copy(
            update={"fraction": percent / 100, "subset_seed": seed}
        )
        for percent in (1, 10)
        for seed in range(5)
    },
    "digits_voc_trainval": _digits_voc("trainval"),
    "digits_voc_test": _digits_voc("test"),
    "digits_coco_train": _coco("train2017", "digits"),
    "digits_coco_val": _coco("val2017", "digits"),
}


def datasets_root() -> Path:
    """Return the folder that holds detection sets: `$DETECTRON2_DATASETS`, else `datasets`."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def known_datasets() -> dict[str, CocoData | VocData]:
    """Return the sets known by name, with their paths below `datasets_root()`."""
    return {name: data.under(datasets_root()) for name, data in KNOWN_DATASETS.items()}


def path_fault(name: Any) -> str | None:
    """Return why a name does not lie below its folder, or None."""
    if not isinstance(name, str) or not name or "\0" in name:
        return "is not a file name"
    path = Path(name)
    return "leaves the folder of the set" if path.is_absolute() or ".." in path.parts else None


def split_names(data: VocData) -> list[str]:
    """Return the image names of a split that the check accepts.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text.
    """
    return read_text(data.index_file).split()


def image_files(folder: Path, names: Iterable[str]) -> dict[str, list[Path]]:
    """Return the image files of each name: those of its stem with an image's suffix, in any case.

    Where there is none it is the `.jpg` of the layout, which then is missing.
    """
    listed: dict[Path, dict[str, list[Path]]] = {}
    files: dict[str, list[Path]] = {}
    for name in names:
        straight = folder / name
        if straight.parent not in listed:
            stems = listed[straight.parent] = {}
            for path in sorted(straight.parent.iterdir()) if straight.parent.is_dir() else ():
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    stems.setdefault(path.stem, []).append(path)
        missing = [straight.with_name(f"{straight.name}.jpg")]
        files[name] = listed[straight.parent].get(straight.name, missing)
    return files


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
    annotations, root = [data.index_file], data.image_root
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
