"""Find what is wrong with a detection set before hours are spent on it. Imports no torch."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from transfer.config import CocoData, VocData

MAX_FAULTS = 20
DECODE_LIMIT = 2_000


def detection_faults(data: CocoData | VocData, evaluated: bool = True) -> list[str]:
    """Return one line per fault, at most 20 of them and one that says there are more.

    Images are opened and their size compared; in sets of up to 2,000 images each is decoded.
    A set that is only trained on may lack the fields that only VOC's evaluation reads.
    """
    faults = _coco_faults(data) if isinstance(data, CocoData) else _voc_faults(data, evaluated)
    found = list(islice(faults, MAX_FAULTS + 1))
    if len(found) > MAX_FAULTS:
        place = data.annotations if isinstance(data, CocoData) else data.root
        found[MAX_FAULTS:] = [f"{place}: more faults like these follow"]
    return found


def _coco_faults(data: CocoData) -> Iterator[str]:
    path = data.annotations
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield f"{path}: no such file; wanted COCO's annotation file"
        return
    except (ValueError, OSError) as error:
        yield f"{path}: not JSON ({error}); wanted COCO's annotation file"
        return
    keys = ("images", "annotations", "categories")
    lists = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in keys)
    if not lists or not content["images"] or not content["categories"]:
        yield f"{path}: not COCO's layout; wanted non-empty lists {', '.join(keys)}"
        return
    try:
        images = {image["id"]: image for image in content["images"]}
        categories = {category["id"] for category in content["categories"]}
        for image in images.values():
            yield from image_faults(
                data.images / image["file_name"],
                (image["width"], image["height"]),
                path,
                decode=len(images) <= DECODE_LIMIT,
            )
        ids = Counter(annotation["id"] for annotation in content["annotations"])
        for number, count in ids.items():
            if count > 1 or not isinstance(number, int) or number < 1:
                yield (
                    f"{path}: annotation id {number!r} ({count} times); COCO's evaluation counts "
                    "right detections as wrong unless ids are different whole numbers from 1"
                )
        for annotation in content["annotations"]:
            yield from _coco_annotation_faults(path, annotation, images, categories)
    except (KeyError, TypeError) as error:
        yield f"{path}: an entry lacks or misuses {error}; wanted COCO's fields"


def _coco_annotation_faults(
    path: Path, annotation: dict[str, Any], images: dict[Any, dict[str, Any]], categories: set[Any]
) -> Iterator[str]:
    where = f"{path}: annotation {annotation['id']}"
    image = images.get(annotation["image_id"])
    if image is None:
        yield f"{where}: image_id {annotation['image_id']} is not among the images"
        return
    if annotation["category_id"] not in categories:
        yield f"{where}: category_id {annotation['category_id']} is not among the categories"
    box = annotation["bbox"]
    numbers = isinstance(box, list) and all(isinstance(value, int | float) for value in box)
    if not numbers or len(box) != 4 or not (box[2] > 0 and box[3] > 0):
        yield f"{where}: bbox {box}, wanted [x, y, width, height] with width and height above 0"


def _voc_faults(data: VocData, evaluated: bool) -> Iterator[str]:
    split = data.root / "ImageSets" / "Main" / f"{data.split}.txt"
    try:
        names = [line.split()[0] for line in split.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        yield f"{split}: cannot be read ({error}); wanted VOC's list of image names"
        return
    if len(names) < 2:
        yield f"{split}: {len(names)} image names, wanted at least 2"
    for name in names:
        annotation = data.root / "Annotations" / f"{name}.xml"
        size, faults = _voc_annotation(annotation, data.class_names, evaluated)
        yield from faults
        if size is not None:
            image = data.root / "JPEGImages" / f"{name}.jpg"
            yield from image_faults(image, size, annotation, decode=len(names) <= DECODE_LIMIT)


def _voc_annotation(
    path: Path, class_names: tuple[str, ...], evaluated: bool
) -> tuple[tuple[int, int] | None, list[str]]:
    """Return (width, height) as annotated, and the file's faults."""
    try:
        tree = ET.parse(path)
        size = int(tree.findtext("./size/width", "")), int(tree.findtext("./size/height", ""))
    except FileNotFoundError:
        return None, [f"{path}: no such file; the split lists it"]
    except (ET.ParseError, ValueError, OSError) as error:
        return None, [f"{path}: not VOC's XML ({error}); wanted size/width and size/height"]
    faults = []
    for element in tree.findall("object"):
        name = element.findtext("name", "")
        if evaluated:
            faults += _evaluation_faults(path, name, element)
        if name not in class_names:
            faults.append(f"{path}: unknown class {name!r}; known: {', '.join(class_names)}")
        try:
            keys = ("xmin", "ymin", "xmax", "ymax")
            box = [float(element.findtext(f"bndbox/{key}", "")) for key in keys]
        except ValueError:
            faults.append(f"{path}: object {name!r} lacks a bndbox of xmin, ymin, xmax, ymax")
            continue
        if not (box[2] > box[0] and box[3] > box[1]):
            faults.append(f"{path}: object {name!r} has an empty bndbox {box}")
    return size, faults


def _evaluation_faults(path: Path, name: str, element: ET.Element) -> list[str]:
    """Return what detectron2's VOC evaluator would trip over, long after training began."""
    faults = []
    for key in ("pose", "truncated", "difficult"):
        text = element.findtext(key)
        if text is None or (key != "pose" and not text.strip().isdigit()):
            faults.append(f"{path}: object {name!r} lacks {key}, wanted VOC's field")
    box = element.find("bndbox")
    if box is not None and not all((side.text or "").strip().isdigit() for side in box):
        faults.append(f"{path}: object {name!r} has a bndbox that is not in whole pixels")
    return faults


def image_faults(
    path: Path, size: tuple[int, int], annotation: Path, *, decode: bool
) -> Iterator[str]:
    """Yield how an image differs from what its annotation says of it; `size` is (width, height)."""
    try:
        with Image.open(path) as image:
            if image.size != size:
                yield f"{path}: size {image.size}, but {annotation} says {size} (width, height)"
            if decode:
                image.load()
    except FileNotFoundError:
        yield f"{path}: no such image; {annotation} points at it"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        yield f"{path}: not a readable image ({error}); {annotation} points at it"
