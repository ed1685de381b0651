"""What is wrong with an annotation file in COCO's layout. Trusts nothing that the file says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from transfer.config.data import CocoData
from transfer.datasets.findings import (
    Findings,
    box_faults,
    is_number,
    is_whole,
    path_fault,
    read_text,
    shown,
)
from transfer.datasets.images import ImageJob
from transfer.datasets.masks import mask_fault

KEYS = ("images", "annotations", "categories")
MAX_SIDE = 1_000_000
Sizes = dict[int, tuple[int, int]]


def check_coco(data: CocoData, findings: Findings) -> list[ImageJob]:
    """Find what is wrong with the annotations, and return the images that they name."""
    content = _content(data.annotations, findings)
    if content is None:
        return []
    findings.num_images, findings.num_objects = len(content["images"]), len(content["annotations"])
    sizes, jobs = _images(data, content["images"], findings)
    categories = _categories(data.annotations, content["categories"], findings)
    _annotation_ids(data.annotations, content["annotations"], findings)
    for index, annotation in enumerate(content["annotations"]):
        if isinstance(annotation, dict):
            where = f"{data.annotations}: {_name(annotation, index)}"
            _annotation(where, annotation, sizes, categories, findings)
        else:
            line = f"{data.annotations}: annotations[{index}] is {shown(annotation)}"
            findings.fault("entries that are no objects", f"{line}, wanted an object of keys")
    findings.num_counted = findings.num_objects
    if findings.needs.evaluated and not any(_counts(entry) for entry in content["annotations"]):
        findings.fault(
            "sets without objects",
            f"{data.annotations}: no annotations to count; AP cannot be measured without objects",
        )
    return jobs


def _content(path: Path, findings: Findings) -> dict[str, list[Any]] | None:
    """Return the file's lists, or None where it is not COCO's layout."""
    wanted = "wanted COCO's annotation file"
    kind = "unreadable annotation files"
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        findings.fault(kind, f"{path}: no such file; {wanted}")
        return None
    except (ValueError, OSError, RecursionError) as error:
        findings.fault(kind, f"{path}: not JSON ({error}); {wanted}")
        return None
    lists = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in KEYS)
    if not lists or not content["images"] or not content["categories"]:
        findings.fault(
            kind, f"{path}: not COCO's layout; wanted lists {', '.join(KEYS)}, the first and last "
            "not empty",
        )  # fmt: skip
        return None
    return {key: content[key] for key in KEYS}


def _images(data: CocoData, images: list[Any], findings: Findings) -> tuple[Sizes, list[ImageJob]]:
    sizes: Sizes = {}
    jobs = []
    for index, image in enumerate(images):
        where = f"{data.annotations}: images[{index}]"
        fault = _image_fault(image, sizes)
        if fault is None:
            size = image["width"], image["height"]
            sizes[image["id"]] = size
            jobs.append(ImageJob(data.images / image["file_name"], size, data.annotations))
        else:
            findings.fault("broken images entries", f"{where} {fault}")
    return sizes, jobs


def _image_fault(image: Any, known: Sizes) -> str | None:
    if not isinstance(image, dict):
        return f"is {shown(image)}, wanted an object of keys"
    if not is_whole(image.get("id")):
        return f"has id {shown(image.get('id'))}, wanted a whole number"
    if image["id"] in known:
        return f"has id {image['id']} as one before it has"
    for key in ("width", "height"):
        value = image.get(key)
        if not is_whole(value) or not 0 < value < MAX_SIDE:
            return f"has {key} {shown(value)}, wanted pixels"
    name = image.get("file_name")
    fault = path_fault(name)
    return None if fault is None else f"has file_name {shown(name)}, which {fault}"


def _categories(path: Path, categories: list[Any], findings: Findings) -> set[int]:
    ids: set[int] = set()
    names: set[str] = set()
    for index, category in enumerate(categories):
        where, kind = f"{path}: categories[{index}]", "broken categories entries"
        if not isinstance(category, dict):
            findings.fault(kind, f"{where} is {shown(category)}, wanted an object of keys")
            continue
        number, name = category.get("id"), category.get("name")
        if not is_whole(number) or number in ids:
            findings.fault(
                kind, f"{where} has id {shown(number)}, wanted whole numbers that differ"
            )
        else:
            ids.add(number)
        if not isinstance(name, str) or not name or name in names:
            findings.fault(kind, f"{where} has name {shown(name)}, wanted names that differ")
        else:
            names.add(name)
    return ids


def _annotation_ids(path: Path, annotations: list[Any], findings: Findings) -> None:
    """Find ids that COCO's evaluation takes for "no match", or for one another."""
    ids = Counter(
        entry["id"]
        for entry in annotations
        if isinstance(entry, dict) and is_whole(entry.get("id"))
    )
    for number, count in ids.items():
        if count > 1 or number < 1:
            findings.fault(
                "annotation ids",
                f"{path}: annotation id {number!r} ({count} times); COCO's evaluation counts "
                "right detections as wrong unless ids are different whole numbers from 1",
            )


def _annotation(
    where: str,
    annotation: dict[str, Any],
    sizes: Sizes,
    categories: set[int],
    findings: Findings,
) -> None:
    if not is_whole(annotation.get("id")):
        line = f"{where}: id is {shown(annotation.get('id'))}, wanted a whole number from 1"
        findings.fault("annotation ids", line)
    for key, known, what in (
        ("image_id", sizes, "images"),
        ("category_id", categories, "categories"),
    ):
        value = annotation.get(key)
        if not is_whole(value) or value not in known:
            findings.fault(
                f"unknown {what}", f"{where}: {key} {shown(value)} is not among the {what}"
            )
    image = annotation.get("image_id")
    size = sizes.get(image) if is_whole(image) else None
    _box(where, annotation, size, findings)
    _flags(where, annotation, findings)
    if findings.needs.evaluated:
        _area(where, annotation.get("area"), size, findings)
    _segmentation(where, annotation, size, findings)


def _box(
    where: str, annotation: dict[str, Any], size: tuple[int, int] | None, findings: Findings
) -> None:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        line = f"{where}: bbox {shown(box)}, wanted [x, y, width, height] in pixels"
        findings.fault("broken boxes", line)
    elif size is not None:
        x, y, width, height = box
        box_faults(findings, f"{where}: bbox {box}", (x, y, x + width, y + height), size)


def _flags(where: str, annotation: dict[str, Any], findings: Findings) -> None:
    """Find flags that detectron2 asserts, and keypoints that it would trip over."""
    crowd, ignored = annotation.get("iscrowd", 0), annotation.get("ignore", 0)
    if crowd not in (0, 1) or ignored != 0:
        line = f"{where}: iscrowd {shown(crowd)} and ignore {shown(ignored)}"
        findings.fault("flags", f"{line}, wanted iscrowd 0 or 1 and no ignore")
    points = annotation.get("keypoints", [])
    if not isinstance(points, list) or not all(is_number(value) for value in points):
        findings.fault("flags", f"{where}: keypoints {shown(points)}, wanted a list of numbers")


def _area(where: str, area: Any, size: tuple[int, int] | None, findings: Findings) -> None:
    if not is_number(area) or area < 0:
        line = f"{where}: area is {shown(area)}, wanted a number for the evaluation"
        findings.fault("areas", line)
    elif size is not None and area > (size[0] + 2) * (size[1] + 2):
        line = f"{where}: area is {shown(area)}, more than its image of {size[0]} x {size[1]}"
        findings.fault("areas", line)


def _segmentation(
    where: str, annotation: dict[str, Any], size: tuple[int, int] | None, findings: Findings
) -> None:
    shape = annotation.get("segmentation")
    if not shape:
        if findings.needs.masks:
            line = f"{where}: no segmentation, but MODEL.MASK_ON asks for masks"
            findings.fault("missing masks", line)
    elif size is not None and (found := mask_fault(shape, size)) is not None:
        text, dropped = found
        keep = findings.loss if dropped else findings.fault
        keep("short polygons" if dropped else "broken masks", f"{where}: segmentation {text}")


def _name(annotation: dict[str, Any], index: int) -> str:
    number = annotation.get("id")
    return f"annotation {number}" if is_whole(number) else f"annotations[{index}]"


def _counts(annotation: Any) -> bool:
    return isinstance(annotation, dict) and not annotation.get("iscrowd")
