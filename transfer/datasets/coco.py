"""Checks of an annotation file in COCO's layout, of which nothing is trusted."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

from transfer.config.data import CocoData, Id, part_ids, path_fault
from transfer.datasets.findings import (
    Edges,
    Finding,
    Findings,
    ImageJob,
    Needs,
    box_findings,
    is_dropped_box,
    shown,
)
from transfer.files import (
    Entries,
    is_number,
    is_whole,
    no_collection,
    number_of,
    read_text,
    share_of,
)

KEYS = ("images", "annotations", "categories")
ID_KEYS = ("id", "image_id", "category_id")
OBJECT = "wanted an object of keys"
MAX_SIDE = 1_000_000
ROUNDING = 1.05  # of an area against its box's
MIN_NUMBERS, CORNERS = 6, "wanted pairs, three or more"  # of a polygon
Size = tuple[int, int]  # width, height


@dataclass
class Known:
    """Images and categories that an annotation may name.

    `broken` has the ids of entries with a fault of their own, as text: annotations that name them
    have no other. It has None where an entry's id cannot be told.
    """

    needs: Needs
    sizes: dict[Id, Size] = field(default_factory=dict)
    files: dict[Id, str] = field(default_factory=dict)
    classes: dict[Id, str] = field(default_factory=dict)
    broken: dict[str, set[str | None]] = field(
        default_factory=lambda: {"images": set(), "categories": set()}
    )

    def is_id(self, value: Any) -> TypeGuard[Id]:
        """Return whether a value can be an id: a whole number, in training also a text."""
        return is_whole(value) or (
            isinstance(value, str) and value != "" and not self.needs.evaluated
        )

    def add_broken(self, key: str, entry: Any) -> None:
        """Remember that an entry has a fault."""
        number = entry.get("id") if isinstance(entry, dict) else None
        self.broken[key].add(None if number is None else shown(number).strip("'"))

    def is_explained(self, key: str, value: Any) -> bool:
        """Return whether a broken entry explains why an annotation's id is not known."""
        return None in self.broken[key] or shown(value).strip("'") in self.broken[key]


@dataclass
class Counts:
    """Objects of the images that are used: by image and by category, and their masks by kind.

    An image counts as one with objects where detectron2 reads any; those that it drops later leave
    the image as background, and nothing of their class.
    """

    needs: Needs
    used: Collection[Id]
    num_entries: int = 0
    counted: Counter[Id] = field(default_factory=Counter)  # by image
    trained: Counter[Id] = field(default_factory=Counter)
    counted_classes: Counter[Id] = field(default_factory=Counter)
    trained_classes: Counter[Id] = field(default_factory=Counter)
    masks: Counter[str] = field(default_factory=Counter)
    first_runs: Any = None
    odd_areas: list[Any] = field(default_factory=list)  # ids of annotations
    reach: float = 0  # pixels from the upper left corner to the farthest edge of a box

    def add(self, entry: dict[str, Any], size: Size) -> None:
        """Count an annotation of a known category and of a known image of that size."""
        self.num_entries += 1
        if entry.get("iscrowd"):
            return
        image, category, shape = entry["image_id"], entry["category_id"], entry.get("segmentation")
        self.counted[image] += 1
        self.counted_classes[category] += 1
        if edges := _edges(entry):
            x0, y0, x1, y1 = edges
            self.reach = max(self.reach, x1, y1)
            area, of_box = entry.get("area"), (x1 - x0) * (y1 - y0)
            is_odd = is_number(area) and not 0 < area <= ROUNDING * of_box + 1
            if is_odd and not any(box_findings("", edges, size)):
                self.odd_areas.append(entry.get("id"))
        if isinstance(shape, dict):
            self.masks["runs"] += 1
            self.first_runs = self.first_runs or entry.get("id")
        elif shape:
            self.masks["polygons"] += 1
        if not (shape and isinstance(shape, list) and all(map(_is_short, shape))):
            self.trained[image] += 1
            is_dropped = edges is not None and is_dropped_box(edges, size)
            is_dropped = is_dropped or (self.needs.masks and _has_no_pixel(shape))
            self.trained_classes[category] += not is_dropped


def check_coco(data: CocoData, findings: Findings) -> Iterator[Finding]:
    """Yield what is wrong with the annotations; count them and the images in `findings`."""
    path = data.annotations
    try:
        images, annotations, categories, ids = _lists(path)
    except ValueError as error:
        yield "unreadable annotation files", f"{path}: {error}"
        return
    yield from _decimal_ids(path, images, categories, ids)
    known = Known(findings.needs)
    yield from _images(path, images, known)
    yield from _categories(path, categories, known)
    yield from _annotation_ids(path, ids.counts, findings.needs)
    used: Collection[Id] = known.files.keys()
    if data.fraction is not None:
        used = part_ids(known.files, data.fraction, data.subset_seed)
        share = share_of(len(used), len(images), "image", "is", "are")
        yield "parts of sets", f"{path}: {share} the part that is used"
    counts = Counts(findings.needs, used)
    yield from _annotations(path, annotations, known, counts, findings)
    findings.published = len(images), len(annotations)
    is_whole_file = data.fraction is None
    findings.num_images = len(images) if is_whole_file else len(used)
    findings.num_objects = len(annotations) if is_whole_file else counts.num_entries
    tally, classes = findings.tally, known.classes.items()
    for number in used:
        name = known.files[number]
        findings.jobs.append(ImageJob(data.images / name, known.sizes[number], path))
        tally.add_image(name, counts.counted[number], counts.trained[number])
    tally.class_names = tuple(known.classes.values())
    tally.counted = Counter({name: counts.counted_classes[number] for number, name in classes})
    tally.trained = Counter({name: counts.trained_classes[number] for number, name in classes})
    yield from _runs(path, counts)
    yield from _sizes(path, counts)


def _annotations(
    path: Path, annotations: Iterable[Any], known: Known, counts: Counts, findings: Findings
) -> Iterator[Finding]:
    """Yield what is wrong with each annotation; count those of the images that are used."""
    for index, entry in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        if not isinstance(entry, dict):
            yield "entries that are no objects", f"{where} is {shown(entry)}, {OBJECT}"
            continue
        made_whole(entry)
        if known.is_id(entry.get("id")):
            where = f"{path}: annotation {entry['id']}"
        image, category = entry.get("image_id"), entry.get("category_id")
        size, file = None, ""
        if known.is_id(image) and image in known.files:
            size, file = known.sizes[image], known.files[image]
        checks = chain(_box(where, entry, size, known), _mask(where, entry, size, known.needs))
        yield from findings.set_aside(file, checks)
        if size is not None and image in counts.used and known.is_id(category):
            counts.add(entry, size)


def _runs(path: Path, counts: Counts) -> Iterator[Finding]:
    """Yield that masks in runs are trained on as polygons, at which detectron2 stops.

    Crowds are left out before masks are read, so theirs may be runs. As bitmasks it reads both.
    """
    num_runs, num_masks = counts.masks["runs"], counts.masks.total()
    if num_runs and counts.needs.polygons and counts.needs.in_training:
        share = share_of(num_runs, num_masks, "mask", "is", "are")
        line = f"{path}: {share} in runs (first: annotation {shown(counts.first_runs)}), but "
        line += "INPUT.MASK_FORMAT is polygon"
        yield "masks in runs", f"{line}; set INPUT.MASK_FORMAT=bitmask, which takes both kinds"


def _sizes(path: Path, counts: Counts) -> Iterator[Finding]:
    """Yield that boxes are no pixels, or else that areas are not those of the boxes."""
    num_objects, num_odd = counts.counted.total(), len(counts.odd_areas)
    if num_objects and 0 < counts.reach <= 1:
        line = f"{path}: all boxes end within the first pixel, so they seem to be fractions of the "
        yield "boxes in fractions", f"{line}image; wanted [x, y, width, height] in pixels"
    elif num_odd and counts.needs.evaluated:
        share = share_of(num_odd, num_objects, "object", "has", "have")
        line = f"{path}: {share} an area of 0 or above their box's (first: annotation "
        line += f"{shown(counts.odd_areas[0])}); APs, APm and APl sort objects by area"
        yield "areas that boxes contradict", line


def _lists(path: Path) -> tuple[list[Any], list[Any] | Entries, list[Any], AnnotationIds]:
    """Return the file's images, annotations and categories, and the ids of the annotations.

    Of a file of COCO's size the annotations are four times as large in memory as on the disk, so
    they are decoded as they are walked.

    Raises:
        ValueError: it is not COCO's layout.
    """
    try:
        text, ids = read_text(path), AnnotationIds()
        try:
            entries = Entries(text, "annotations", ids.see)
            content: Any = entries.around | {"annotations": entries}
        except (ValueError, RecursionError):  # whatever is wrong, reading it whole says it
            ids = AnnotationIds()
            with no_collection():
                content = json.loads(text)
            for index, entry in enumerate(_list_in(content, "annotations") or ()):
                ids.see(index, entry)
    except FileNotFoundError:
        raise ValueError("no such file; wanted COCO's annotation file") from None
    except IsADirectoryError:
        raise ValueError("is a folder; wanted COCO's annotation file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); wanted COCO's annotation file") from None
    images, annotations, categories = (_list_in(content, key) for key in KEYS)
    if images and annotations is not None and categories:
        return list(images), annotations, list(categories), ids
    raise ValueError(
        f"not COCO's layout; wanted lists {', '.join(KEYS)}, the first and last not empty"
    )


def _list_in(content: Any, key: str) -> list[Any] | Entries | None:
    entries = content.get(key) if isinstance(content, dict) else None
    return entries if isinstance(entries, list | Entries) else None


@dataclass
class AnnotationIds:
    """Ids of all annotations by how often they are there, and which have a decimal point."""

    counts: Counter[Id] = field(default_factory=Counter)
    decimal: list[str] = field(default_factory=list)

    def see(self, index: int, entry: Any) -> None:
        """Count an annotation's id as it is made whole."""
        if isinstance(entry, dict):
            self.decimal += [f"annotations[{index}] has {fault}" for fault in made_whole(entry)]
            number = entry.get("id")
            if is_whole(number) or isinstance(number, str):
                self.counts[number] += 1


def made_whole(entry: dict[str, Any], keys: Sequence[str] = ID_KEYS) -> list[str]:
    """Make an entry's ids with a decimal point whole, so that no line follows; name them."""
    decimal = []
    for key in keys:
        value = entry.get(key)
        if type(value) is float and is_number(value) and value.is_integer():
            entry[key] = int(value)
            decimal.append(f"{key} {value}")
    return decimal


def _decimal_ids(
    path: Path, images: list[Any], categories: list[Any], ids: AnnotationIds
) -> Iterator[Finding]:
    """Yield that ids have a decimal point."""
    decimal = [
        f"{what}[{index}] has {fault}"
        for what, entries in (("images", images), ("categories", categories))
        for index, entry in enumerate(entries) if isinstance(entry, dict)
        for fault in made_whole(entry, ("id",))
    ]  # fmt: skip
    if decimal := decimal + ids.decimal:
        line = (
            f"{path}: {number_of(len(decimal), 'id', 'has', 'have')} a decimal point ({decimal[0]}"
        )
        line += "), as pandas writes a column with gaps; write whole numbers"
        yield "ids with a decimal point", line


def _images(path: Path, images: list[Any], known: Known) -> Iterator[Finding]:
    """Yield what is wrong with the images; add them to `known`."""
    absolute: list[str] = []
    for index, image in enumerate(images):
        if fault := _image_fault(image, known):
            line = f"{path}: images[{index}] {fault}"
            known.add_broken("images", image)
            if isinstance(image, dict) and str(image.get("file_name")).startswith("/"):
                absolute.append(line)
            else:
                yield "broken images entries", line
        else:
            known.sizes[image["id"]] = image["width"], image["height"]
            known.files[image["id"]] = image["file_name"]
    if absolute:
        share = share_of(len(absolute), len(images), "file name", "is", "are")
        line = f"{absolute[0]}; {share} absolute: write them relative to the folder of the images"
        yield "broken images entries", line
    if len({type(number) for number in known.files}) > 1:
        line = f"{path}: ids of images are numbers and texts, wanted one of the two"
        yield "broken images entries", line


def _image_fault(image: Any, known: Known) -> str | None:
    if not isinstance(image, dict):
        return f"is {shown(image)}, {OBJECT}"
    number, name = image.get("id"), image.get("file_name")
    if not known.is_id(number):
        return f"has id {shown(number)}, wanted a whole number"
    if number in known.files:
        return f"has id {number} as one before it has"
    for key in ("width", "height"):
        value = image.get(key)
        if not is_whole(value) or not 0 < value < MAX_SIDE:
            return f"has {key} {shown(value)}, wanted pixels"
    fault = path_fault(name)
    return fault and f"has file_name {shown(name)}, which {fault}"


def _categories(path: Path, categories: list[Any], known: Known) -> Iterator[Finding]:
    """Yield what is wrong with the categories; add them to `known`."""
    kind = "broken categories entries"
    names: set[str] = set()
    for index, category in enumerate(categories):
        where = f"{path}: categories[{index}]"
        if not isinstance(category, dict):
            yield kind, f"{where} is {shown(category)}, {OBJECT}"
            known.add_broken("categories", category)
            continue
        number, name = category.get("id"), category.get("name")
        if not known.is_id(number) or number in known.classes:
            yield kind, f"{where} has id {shown(number)}, wanted whole numbers that differ"
            known.add_broken("categories", category)
        else:
            known.classes[number] = str(name)
        if not isinstance(name, str) or not name or name in names:
            yield kind, f"{where} has name {shown(name)}, wanted names that differ"
        else:
            names.add(name)
    if len({type(number) for number in known.classes}) > 1:
        yield kind, f"{path}: ids of categories are numbers and texts, wanted one of the two"


def _annotation_ids(path: Path, counts: Counter[Id], needs: Needs) -> Iterator[Finding]:
    """Yield ids that COCO's evaluation takes for "no match", or for one another.

    Training asks only that they differ.
    """
    why = "detectron2 wants ids that differ"
    if needs.evaluated:
        why = "COCO's evaluation counts right detections as wrong unless ids are different whole "
        why += "numbers from 1"
    for number, count in counts.items():
        if count > 1 or (needs.evaluated and is_whole(number) and number < 1):
            yield "annotation ids", f"{path}: annotation id {number!r} ({count} times); {why}"


def _box(where: str, entry: dict[str, Any], size: Size | None, known: Known) -> Iterator[Finding]:
    """Yield what is wrong with an annotation's ids and its box."""
    if not known.is_id(entry.get("id")):
        line = f"{where}: id is {shown(entry.get('id'))}, wanted a whole number from 1"
        yield "annotation ids", line
    for key, ids, what in (
        ("image_id", known.sizes, "images"), ("category_id", known.classes, "categories"),
    ):  # fmt: skip
        value = entry.get(key)
        if (not known.is_id(value) or value not in ids) and not known.is_explained(what, value):
            yield f"unknown {what}", f"{where}: {key} {shown(value)} is not among the {what}"
    box, edges = entry.get("bbox"), _edges(entry)
    if edges is None:
        yield "broken boxes", f"{where}: bbox {shown(box)}, wanted [x, y, width, height] in pixels"
    elif size is not None:
        yield from box_findings(f"{where}: bbox {box}", edges, size)


def _edges(entry: dict[str, Any]) -> Edges | None:
    """Return an annotation's box, None where it has none."""
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return None
    x, y, width, height = box
    return x, y, x + width, y + height


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
    elif needs.masks and _has_no_pixel(shape) and not crowd:
        yield "empty masks", f"{where}: segmentation has runs without a pixel; training drops it"


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
    short = next(filter(_is_short, shape), None)
    return None if short is None else f"has a polygon of {len(short)} numbers, {CORNERS}"


def _is_short(polygon: Any) -> bool:
    """Return whether a polygon is one that detectron2 drops."""
    return isinstance(polygon, list) and (len(polygon) < MIN_NUMBERS or len(polygon) % 2 > 0)


def _runs_fault(shape: dict[str, Any], size: Size) -> str | None:
    width, height = size
    if shape.get("size") != [height, width]:
        sizes = f"{shown(shape.get('size'))}, wanted {[height, width]}"
        return f"has runs of size {sizes} (height, width)"
    runs = _runs_of(shape)
    if runs is None:
        return f"has counts {shown(shape.get('counts'))}, wanted runs of pixels"
    if sum(runs) != width * height:
        return f"has runs of {sum(runs)} pixels, wanted {width * height}"
    return None


def _has_no_pixel(shape: Any) -> bool:
    """Return whether a segmentation is of runs, all of them of background."""
    runs = _runs_of(shape) if isinstance(shape, dict) else None
    return runs is not None and not any(runs[1::2])


def _runs_of(shape: dict[str, Any]) -> list[int] | None:
    """Return the lengths of a mask's runs, background first; None where they cannot be read."""
    counts = shape.get("counts")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(is_whole(run) and run >= 0 for run in runs):
        return None
    return runs


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
