"""Find what is wrong with a detection set before hours are spent on it. Imports no torch."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from transfer.config import CocoData, VocData

MAX_FAULTS = 20
DECODE_LIMIT = 2_000


def detection_faults(
    data: CocoData | VocData, evaluated: bool = True, masks: bool = False
) -> list[str]:
    """Return one line per fault, at most 20 of them and one that says there are more.

    Images are opened and their size compared; in sets of up to 2,000 images each is decoded.
    A set that is only trained on may lack what only an evaluation reads; `masks` asks for masks.
    """
    if isinstance(data, CocoData):
        faults = _coco_faults(data, CocoNeeds(evaluated, masks))
    else:
        faults = _voc_faults(data, evaluated, masks)
    found = list(islice(faults, MAX_FAULTS + 1))
    if len(found) > MAX_FAULTS:
        place = data.annotations if isinstance(data, CocoData) else data.root
        found[MAX_FAULTS:] = [f"{place}: more faults like these follow"]
    return found


class CocoNeeds(NamedTuple):
    """What a COCO set must have: evaluation reads `area`, Mask R-CNN reads `segmentation`."""

    evaluated: bool
    masks: bool


def _coco_faults(data: CocoData, needs: CocoNeeds) -> Iterator[str]:
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
    if needs.evaluated and not content["annotations"]:
        yield f"{path}: no annotations; AP cannot be measured on a set without objects"
    try:
        yield from _coco_image_faults(data, content["images"])
        yield from _coco_id_faults(path, content)
        for annotation in content["annotations"]:
            where = f"{path}: annotation {annotation['id']}"
            yield from _coco_annotation_faults(where, annotation, needs)
    except (KeyError, TypeError) as error:
        yield f"{path}: an entry lacks or misuses {error}; wanted COCO's fields"


def _coco_image_faults(data: CocoData, images: list[dict[str, Any]]) -> Iterator[str]:
    for image in images:
        size = image["width"], image["height"]
        path = data.images / image["file_name"]
        yield from image_faults(path, size, data.annotations, decode=len(images) <= DECODE_LIMIT)


def _coco_id_faults(path: Path, content: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    images = {image["id"] for image in content["images"]}
    categories = {category["id"]: category["name"] for category in content["categories"]}
    ids = Counter(annotation["id"] for annotation in content["annotations"])
    for number, count in ids.items():
        if count > 1 or not isinstance(number, int) or number < 1:
            yield (
                f"{path}: annotation id {number!r} ({count} times); COCO's evaluation counts "
                "right detections as wrong unless ids are different whole numbers from 1"
            )
    for annotation in content["annotations"]:
        for key, known, what in (
            ("image_id", images, "images"),
            ("category_id", categories, "categories"),
        ):
            if annotation[key] not in known:
                where = f"{path}: annotation {annotation['id']}"
                yield f"{where}: {key} {annotation[key]} is not among the {what}"


def _coco_annotation_faults(
    where: str, annotation: dict[str, Any], needs: CocoNeeds
) -> Iterator[str]:
    """Yield faults of one annotation; training drops empty boxes, so only evaluation minds them."""
    box = annotation["bbox"]
    numbers = isinstance(box, list) and all(isinstance(value, int | float) for value in box)
    sound = numbers and len(box) == 4
    if not sound or (needs.evaluated and not (box[2] > 0 and box[3] > 0)):
        yield f"{where}: bbox {box}, wanted [x, y, width, height] with width and height above 0"
    if needs.evaluated and not isinstance(annotation.get("area"), int | float):
        yield f"{where}: area is {annotation.get('area')!r}, wanted a number for the evaluation"
    if needs.masks and not annotation.get("segmentation"):
        yield f"{where}: no segmentation, but MODEL.MASK_ON asks for masks"


def _voc_faults(data: VocData, evaluated: bool, masks: bool) -> Iterator[str]:
    split = data.root / "ImageSets" / "Main" / f"{data.split}.txt"
    try:
        names = [line.split()[0] for line in split.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        reason = "a blank line" if isinstance(error, IndexError) else error
        yield f"{split}: cannot be read ({reason}); wanted VOC's list of image names"
        return
    if masks:
        yield f"{data.root}: VOC's layout has no masks, but MODEL.MASK_ON asks for them"
    if len(names) < 2:
        yield f"{split}: {len(names)} image names, wanted at least 2"
    counted: set[str] = set()
    for name in names:
        annotation = data.root / "Annotations" / f"{name}.xml"
        size, faults = _voc_annotation(annotation, data.class_names, evaluated, counted)
        yield from faults
        if size is not None:
            image = data.root / "JPEGImages" / f"{name}.jpg"
            yield from image_faults(image, size, annotation, decode=len(names) <= DECODE_LIMIT)
    absent = [name for name in data.class_names if name not in counted]
    if evaluated and absent:
        yield f"{split}: no object to count of {', '.join(absent)}; their AP cannot be measured"


def _voc_annotation(
    path: Path, class_names: tuple[str, ...], evaluated: bool, counted: set[str]
) -> tuple[tuple[int, int] | None, list[str]]:
    """Return (width, height) as annotated, and the file's faults; add to `counted` what counts."""
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
        if (element.findtext("difficult") or "0").strip() == "0":
            counted.add(name)
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
