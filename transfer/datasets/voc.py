"""Checks of a set in Pascal VOC's layout, of which nothing is trusted."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from transfer.config.data import VocData
from transfer.datasets.findings import (
    Finding,
    Findings,
    ImageJob,
    box_findings,
    is_number,
    path_fault,
    read_text,
    shown,
)

EDGES = ("xmin", "ymin", "xmax", "ymax")
MAX_BYTES = 16_000_000
MAX_SIDE = 1_000_000
Size = tuple[int, int]  # width, height


def check_voc(data: VocData, findings: Findings) -> Iterator[Finding]:
    """Yield what is wrong with the annotations; count them and the images in `findings`."""
    split = data.root / "ImageSets" / "Main" / f"{data.split}.txt"
    names: dict[str, None] = {}
    yield from _split(split, names)
    if findings.needs.masks:
        line = f"{data.root}: VOC's layout has no masks, but MODEL.MASK_ON asks for them"
        yield "missing masks", line
    if len(set(data.class_names)) < len(data.class_names):
        yield "classes named twice", f"{data.root}: class_names holds a name twice"
    findings.num_images = len(names)
    counted: set[str] = set()
    for name in names:
        path = data.root / "Annotations" / f"{name}.xml"
        try:
            tree, size = _read(path)
        except FileNotFoundError:
            yield "missing annotation files", f"{path}: no such file; the split lists it"
            continue
        except (ET.ParseError, ValueError, OSError) as error:
            line = f"{path}: not VOC's XML ({error}); wanted size/width and size/height"
            yield "broken annotation files", line
            continue
        findings.jobs.append(ImageJob(data.root / "JPEGImages" / f"{name}.jpg", size, path))
        for element in tree.findall("object"):
            findings.num_objects += 1
            if (element.findtext("difficult") or "0").strip() == "0":
                findings.num_counted += 1
                counted.add(element.findtext("name", ""))
            yield from _object(path, element, size, data.class_names, findings.needs.evaluated)
    absent = [name for name in data.class_names if name not in counted]
    if findings.needs.evaluated and names and absent:
        line = f"{split}: no object to count of {', '.join(absent)}; their AP cannot be measured"
        yield "classes without objects", line


def _split(path: Path, names: dict[str, None]) -> Iterator[Finding]:
    """Add a split's image names, as detectron2 and the development kit read them, to `names`."""
    kind = "broken splits"
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        yield kind, f"{path}: cannot be read ({error}); wanted VOC's list of image names"
        return
    for number, text in enumerate(lines, start=1):
        words = text.split()
        name = words[0] if words else ""
        fault = path_fault(name)
        if not words:
            fault = "is a blank line"
        elif len(words) > 1 or "#" in name:
            fault = "is not one name, without spaces and #"
        elif name in names:
            fault = "is listed twice"
        if fault is None:
            names[name] = None
        else:
            yield kind, f"{path}: line {number}, {shown(text)}, {fault}"
    if len(lines) < 2:
        yield kind, f"{path}: {len(lines)} image names, wanted at least 2"


def _read(path: Path) -> tuple[ET.Element, Size]:
    """Return the root of an XML file that declares nothing of its own, and (width, height).

    Raises:
        ValueError: it is large, not UTF-8, declares entities (which can grow without bound), or
            has no sane size.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError("more than 16 MB")
    text = read_text(path)  # as detectron2 reads it
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type; VOC's files have none")
    tree = ET.fromstring(text)
    size = int(tree.findtext("./size/width", "")), int(tree.findtext("./size/height", ""))
    if not all(0 < side < MAX_SIDE for side in size):
        raise ValueError(f"a size of {shown(size)}")
    return tree, size


def _object(
    path: Path, element: ET.Element, size: Size, class_names: tuple[str, ...], evaluated: bool
) -> Iterator[Finding]:
    """Yield what is wrong with one object in an image of `size`.

    An evaluation reads more, and trips over it long after training began.
    """
    name = element.findtext("name", "")
    where = f"{path}: object {shown(name)}"
    texts = [element.findtext(f"bndbox/{key}", "") for key in EDGES]
    for key in ("pose", "truncated", "difficult") if evaluated else ():
        text = element.findtext(key)
        if text is None or (key != "pose" and not _is_count(text)):
            yield "missing fields", f"{where} lacks {key}, wanted VOC's field"
    if evaluated and all(texts) and not all(map(_is_count, texts)):
        yield "boxes between pixels", f"{where} has a bndbox {texts} that is not in whole pixels"
    if name not in class_names:
        line = f"{path}: unknown class {shown(name)}; known: {', '.join(class_names)}"
        yield "unknown classes", line
    try:
        x0, y0, x1, y1 = edges = [float(text) for text in texts]
    except ValueError:
        edges = []
    if not edges or not all(map(is_number, edges)):
        yield "broken boxes", f"{where} lacks a bndbox of {', '.join(EDGES)} in pixels"
    elif not (x1 > x0 and y1 > y0):
        yield "empty boxes", f"{where} has an empty bndbox {edges}"
    else:  # edges count from 1, and the last pixel belongs to the box
        box = (x0 - 1, y0 - 1, x1, y1)
        yield from box_findings(f"{where} has a bndbox {edges} that", box, size)


def _is_count(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit()
