"""Write drawn scenes in COCO's and in PASCAL VOC's layout, and crops as plain folders.

A COCO box is [x, y, width, height] from 0; a VOC box is xmin, ymin, xmax, ymax from 1 with the
last pixel included. For one digit: xmin = x + 1, ymin = y + 1, xmax = x + width, ymax = y + height,
so detectron2, which subtracts 1 from xmin and ymin, reads the same box from both.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from examples.digits.draw import SCENE_SIZE, Picture, PlacedDigit, Scene
from examples.digits.polygons import mask_to_polygons
from transfer.config.data import DIGIT_CLASSES

CLASS_NAMES = DIGIT_CLASSES
LICENSE = {"id": 1, "name": "CC BY 4.0", "url": "https://creativecommons.org/licenses/by/4.0/"}
INFO = {
    "description": "Embedded digits: scenes drawn from scikit-learn's load_digits",
    "url": "https://doi.org/10.24432/C50P49",
    "version": "1",
    "year": 1998,
    "contributor": "E. Alpaydin and C. Kaynak",
    "date_created": "1998-07-01",
}
_JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}


def write_scenes(root: Path, split: str, scenes: Iterable[Scene], *, first_id: int) -> list[int]:
    """Write the scenes of "train" or "val" in both layouts; returns their image ids.

    Both layouts hold the same JPEG bytes; image 7 is 000000000007.jpg in COCO, 000007.jpg in VOC.
    """
    coco_images = root / "coco" / f"{split}2017"
    voc = root / "VOC2007"
    for folder in (coco_images, voc / "Annotations", voc / "JPEGImages"):
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, first_id):
        content = encode_image(scene.image, "JPEG", **_JPEG)
        name = f"{image_id:012d}.jpg"
        (coco_images / name).write_bytes(content)
        (voc / "JPEGImages" / f"{image_id:06d}.jpg").write_bytes(content)
        images.append(
            {"id": image_id, "file_name": name, "width": SCENE_SIZE, "height": SCENE_SIZE}
            | {"license": LICENSE["id"]}
        )
        for position, digit in enumerate(scene.digits):
            annotation_id = image_id * 10 + position
            annotations.append(coco_annotation(digit, image_id, annotation_id))
        xml = voc_annotation(scene, f"{image_id:06d}")
        (voc / "Annotations" / f"{image_id:06d}.xml").write_text(xml, encoding="utf-8")
    _write_coco_index(root / "coco" / "annotations", split, images, annotations)
    return [image["id"] for image in images]


def coco_annotation(digit: PlacedDigit, image_id: int, annotation_id: int) -> dict[str, Any]:
    """One object; `digit_index` (which source digit) is an addition to COCO's keys."""
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": digit.label + 1,
        "bbox": list(digit.box),
        "area": int(digit.mask.sum()),
        "segmentation": mask_to_polygons(digit.mask, x=digit.x, y=digit.y),
        "iscrowd": 0,
        "digit_index": digit.digit_index,
    }


def voc_annotation(scene: Scene, name: str) -> str:
    """The XML text of one scene."""
    root = ElementTree.Element("annotation")
    height, width, depth = scene.image.shape
    _add(root, {"folder": "VOC2007", "filename": f"{name}.jpg"})
    _add(_child(root, "source"), {"database": "Embedded digits", "annotation": "drawn"})
    _add(_child(root, "size"), {"width": width, "height": height, "depth": depth})
    _add(root, {"segmented": 0})
    for digit in scene.digits:
        x, y, box_width, box_height = digit.box
        node = _child(root, "object")
        _add(node, {"name": CLASS_NAMES[digit.label], "pose": "Unspecified"})
        _add(node, {"truncated": 0, "difficult": 0})
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + box_width, "ymax": y + box_height}
        _add(_child(node, "bndbox"), corners)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def write_image_sets(root: Path, splits: dict[str, list[int]]) -> None:
    """Write VOC2007/ImageSets/Main/<split>.txt, one six-digit name a line."""
    folder = root / "VOC2007" / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for split, ids in splits.items():
        lines = "".join(f"{image_id:06d}\n" for image_id in ids)
        (folder / f"{split}.txt").write_text(lines, encoding="utf-8")


def write_crops(folder: Path, crops: Iterable[tuple[str, Picture]]) -> int:
    """Write each picture as PNG under its name in `folder`; returns how many."""
    count = 0
    for name, picture in crops:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(picture, "PNG", compress_level=1))
        count += 1
    return count


def encode_image(picture: Picture, image_format: str, **options: Any) -> bytes:
    """The bytes of an image file, without a time stamp."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, image_format, **options)
    return buffer.getvalue()


def _write_coco_index(
    folder: Path, split: str, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "info": INFO,
        "licenses": [LICENSE],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "digit"}
            for number, name in enumerate(CLASS_NAMES, 1)
        ],
    }
    text = json.dumps(content, separators=(",", ":")) + "\n"
    (folder / f"instances_{split}2017.json").write_text(text, encoding="utf-8")


def _child(parent: ElementTree.Element, tag: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag)


def _add(parent: ElementTree.Element, values: Mapping[str, str | int]) -> None:
    for tag, value in values.items():
        _child(parent, tag).text = str(value)
