"""Detection sets: where they lie, in which layout, and those known by name. Torch-free.

Fields marked with `left_out(why)` cannot change a result and stay out of a stage's signature. A
set's key `identity` says how its images are known: by `content`, or by size, first and last 16 KiB
(`blocks`); the identity of the data holds it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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


def left_out(why: str) -> dict[str, Any]:
    """Return the mark of a field that is no part of a stage's identity, with the reason."""
    return {"identity": False, "why": why}


PATH = left_out("a path; the files enter by content")
LEVEL = left_out("the identity of the data says it")


class Section(BaseModel):
    """A frozen part of a config that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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
