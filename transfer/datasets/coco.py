"""Checks of an annotation file in COCO's layout, of which nothing is trusted."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfer.config.data import CocoData
from transfer.datasets.findings import (
    Finding,
    Findings,
    ImageJob,
    Needs,
    box_findings,
    is_number,
    is_whole,
    path_fault,
    read_text,
    shown,
)

KEYS = ("images", "annotations", "categories")
MAX_SIDE = 1_000_000
MIN_NUMBERS, CORNERS = 6, "wanted pairs, three or more"  # of a polygon
Size = tuple[int, int]  # width, height
Sizes = dict[int, Size]  # by image id


def check_coco(data: CocoData, findings: Findings) -> Iterator[Finding]:
    """Yield what is wrong with the annotations; count them and the images in `findings`."""
    path = data.annotations
    try:
        images, annotations, categories = _lists(path)
    except ValueError as error:
        yield "unreadable annotation files", f"{path}: {error}"
        return
    findings.num_images = len(images)
    findings.num_objects = findings.num_counted = len(annotations)
    sizes: Sizes = {}
    for index, image in enumerate(images):
        if fault := _image_fault(image, sizes):
            yield "broken images entries", f"{path}: images[{index}] {fault}"
        else:
            sizes[image["id"]] = image["width"], image["height"]
            file = data.images / image["file_name"]
            findings.jobs.append(ImageJob(file, sizes[image["id"]], path))
    ids: set[int] = set()
    yield from _categories(path, categories, ids)
    yield from _annotation_ids(path, annotations)
    for index, entry in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        if isinstance(entry, dict):
            if is_whole(entry.get("id")):
                where = f"{path}: annotation {entry['id']}"
            size = sizes.get(entry["image_id"]) if is_whole(entry.get("image_id")) else None
            yield from _box(where, entry, size, (sizes, ids))
            yield from _mask(where, entry, size, findings.needs)
        else:
            line = f"{where} is {shown(entry)}, wanted an object of keys"
            yield "entries that are no objects", line
    if findings.needs.evaluated and not any(
        isinstance(entry, dict) and not entry.get("iscrowd") for entry in annotations
    ):
        line = f"{path}: no annotations to count; AP cannot be measured without objects"
        yield "sets without objects", line


def _lists(path: Path) -> list[list[Any]]:
    """Return the file's images, annotations and categories.

    Raises:
        ValueError: it is not COCO's layout.
    """
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise ValueError("no such file; wanted COCO's annotation file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); wanted COCO's annotation file") from None
    lists: list[Any] = [content.get(key) for key in KEYS] if isinstance(content, dict) else [None]
    if all(isinstance(entries, list) for entries in lists) and lists[0] and lists[2]:
        return lists
    raise ValueError(
        f"not COCO's layout; wanted lists {', '.join(KEYS)}, the first and last not empty"
    )


def _image_fault(image: Any, known: Sizes) -> str | None:
    if not isinstance(image, dict):
        return f"is {shown(image)}, wanted an object of keys"
    number, name = image.get("id"), image.get("file_name")
    if not is_whole(number):
        return f"has id {shown(number)}, wanted a whole number"
    if number in known:
        return f"has id {number} as one before it has"
    for key in ("width", "height"):
        value = image.get(key)
        if not is_whole(value) or not 0 < value < MAX_SIDE:
            return f"has {key} {shown(value)}, wanted pixels"
    fault = path_fault(name)
    return fault and f"has file_name {shown(name)}, which {fault}"


def _categories(path: Path, categories: list[Any], ids: set[int]) -> Iterator[Finding]:
    """Yield what is wrong with the categories; add their ids to `ids`."""
    kind = "broken categories entries"
    names: set[str] = set()
    for index, category in enumerate(categories):
        where = f"{path}: categories[{index}]"
        if not isinstance(category, dict):
            yield kind, f"{where} is {shown(category)}, wanted an object of keys"
            continue
        number, name = category.get("id"), category.get("name")
        if not is_whole(number) or number in ids:
            yield kind, f"{where} has id {shown(number)}, wanted whole numbers that differ"
        else:
            ids.add(number)
        if not isinstance(name, str) or not name or name in names:
            yield kind, f"{where} has name {shown(name)}, wanted names that differ"
        else:
            names.add(name)


def _annotation_ids(path: Path, annotations: list[Any]) -> Iterator[Finding]:
    """Yield ids that COCO's evaluation takes for "no match", or for one another."""
    ids = (entry.get("id") for entry in annotations if isinstance(entry, dict))
    for number, count in Counter(filter(is_whole, ids)).items():
        if count > 1 or number < 1:
            why = "counts right detections as wrong unless ids are different whole numbers from 1"
            line = f"{path}: annotation id {number!r} ({count} times); COCO's evaluation {why}"
            yield "annotation ids", line


def _box(
    where: str, entry: dict[str, Any], size: Size | None, known: tuple[Sizes, set[int]]
) -> Iterator[Finding]:
    """Yield what is wrong with an annotation's ids and its box."""
    if not is_whole(entry.get("id")):
        line = f"{where}: id is {shown(entry.get('id'))}, wanted a whole number from 1"
        yield "annotation ids", line
    for key, ids, what in zip(("image_id", "category_id"), known, KEYS[::2], strict=True):
        value = entry.get(key)
        if not is_whole(value) or value not in ids:
            yield f"unknown {what}", f"{where}: {key} {shown(value)} is not among the {what}"
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        yield "broken boxes", f"{where}: bbox {shown(box)}, wanted [x, y, width, height] in pixels"
    elif size is not None:
        x, y, width, height = box
        yield from box_findings(f"{where}: bbox {box}", (x, y, x + width, y + height), size)


def _mask(where: str, entry: dict[str, Any], size: Size | None, needs: Needs) -> Iterator[Finding]:
    """Yield flags that detectron2 would trip over, and what is wrong with area and mask."""
    crowd, ignored = entry.get("iscrowd", 0), entry.get("ignore", 0)
    if crowd not in (0, 1) or ignored != 0:
        line = f"{where}: iscrowd {shown(crowd)} and ignore {shown(ignored)}"
        yield "flags", f"{line}, wanted iscrowd 0 or 1 and no ignore"
    points = entry.get("keypoints", [])
    if not isinstance(points, list) or not all(map(is_number, points)):
        yield "flags", f"{where}: keypoints {shown(points)}, wanted a list of numbers"
    area: Any = entry.get("area")
    shape = entry.get("segmentation")
    if needs.evaluated and (not is_number(area) or area < 0):
        yield "areas", f"{where}: area is {shown(area)}, wanted a number for the evaluation"
    elif needs.evaluated and size is not None and area > (size[0] + 2) * (size[1] + 2):
        image = f"its image of {size[0]} x {size[1]}"
        yield "areas", f"{where}: area is {shown(area)}, more than {image}"
    if not shape and needs.masks:
        yield "missing masks", f"{where}: no segmentation, but MODEL.MASK_ON asks for masks"
    elif shape and size is not None and (fault := mask_fault(shape, size)):
        kind = "short polygons" if fault.endswith(CORNERS) else "broken masks"
        yield kind, f"{where}: segmentation {fault}"


def mask_fault(shape: Any, size: Size) -> str | None:
    """Return why COCO's C code would not read a segmentation without harm, or None.

    `size` is the image's (width, height). A fault that ends in `CORNERS` is one of a polygon that
    training merely drops.
    """
    if isinstance(shape, dict):
        return _runs_fault(shape, size)
    if not isinstance(shape, list):
        return f"is {shown(shape)}, wanted polygons or runs"
    reach = max(size)
    for polygon in shape:
        finite = inside = False
        try:
            finite = isinstance(polygon, list) and math.isfinite(sum(polygon))
            inside = finite and (
                not polygon or (-reach <= min(polygon) and max(polygon) <= 2 * reach)
            )
        except (TypeError, OverflowError):
            finite = False
        if not finite:
            return f"has a polygon {shown(polygon)}, wanted a list of numbers"
        if not inside:
            return f"has a polygon {shown(polygon)} far outside its image"
    counts = (len(polygon) for polygon in shape)
    short = next((count for count in counts if count < MIN_NUMBERS or count % 2), None)
    return None if short is None else f"has a polygon of {short} numbers, {CORNERS}"


def _runs_fault(shape: dict[str, Any], size: Size) -> str | None:
    width, height = size
    if shape.get("size") != [height, width]:
        sizes = f"{shown(shape.get('size'))}, wanted {[height, width]}"
        return f"has runs of size {sizes} (height, width)"
    counts = shape.get("counts")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(is_whole(run) and run >= 0 for run in runs):
        return f"has counts {shown(counts)}, wanted runs of pixels"
    if sum(runs) != width * height:
        return f"has runs of {sum(runs)} pixels, wanted {width * height}"
    return None


def _unpacked(text: str) -> list[int] | None:
    """Return the runs that COCO packs five bits to a character, or None where it is not so."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else None
