"""What is wrong with a set in Pascal VOC's layout. Trusts nothing that its files say."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from transfer.config.data import VocData
from transfer.datasets.findings import Findings, box_faults, is_number, path_fault, read_text, shown
from transfer.datasets.images import ImageJob

EDGES = ("xmin", "ymin", "xmax", "ymax")
MAX_BYTES = 16_000_000
MAX_SIDE = 1_000_000


def check_voc(data: VocData, findings: Findings) -> list[ImageJob]:
    """Find what is wrong with the annotations, and return the images that the split names."""
    split = data.root / "ImageSets" / "Main" / f"{data.split}.txt"
    names = _names(split, findings)
    if findings.needs.masks:
        line = f"{data.root}: VOC's layout has no masks, but MODEL.MASK_ON asks for them"
        findings.fault("missing masks", line)
    if len(set(data.class_names)) < len(data.class_names):
        findings.fault("classes named twice", f"{data.root}: class_names holds a name twice")
    findings.num_images = len(names)
    jobs = []
    counted: set[str] = set()
    for name in names:
        path = data.root / "Annotations" / f"{name}.xml"
        size = _annotation(path, data.class_names, findings, counted)
        if size is not None:
            jobs.append(ImageJob(data.root / "JPEGImages" / f"{name}.jpg", size, path))
    absent = [name for name in data.class_names if name not in counted]
    if findings.needs.evaluated and names and absent:
        line = f"{split}: no object to count of {', '.join(absent)}; their AP cannot be measured"
        findings.fault("classes without objects", line)
    return jobs


def _names(split: Path, findings: Findings) -> list[str]:
    """Return the image names of a split, as detectron2 and the development kit read them."""
    kind = "broken splits"
    try:
        lines = read_text(split).splitlines()
    except (OSError, ValueError) as error:
        line = f"{split}: cannot be read ({error}); wanted VOC's list of image names"
        findings.fault(kind, line)
        return []
    names: dict[str, None] = {}
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
            findings.fault(kind, f"{split}: line {number}, {shown(text)}, {fault}")
    if len(lines) < 2:
        findings.fault(kind, f"{split}: {len(lines)} image names, wanted at least 2")
    return list(names)


def _annotation(
    path: Path, class_names: tuple[str, ...], findings: Findings, counted: set[str]
) -> tuple[int, int] | None:
    """Return (width, height) as annotated; add to `counted` the classes of objects that count."""
    kind = "broken annotation files"
    try:
        tree = _tree(path)
        size = int(tree.findtext("./size/width", "")), int(tree.findtext("./size/height", ""))
        if not all(0 < side < MAX_SIDE for side in size):
            raise ValueError(f"a size of {shown(size)}")
    except FileNotFoundError:
        findings.fault("missing annotation files", f"{path}: no such file; the split lists it")
        return None
    except (ET.ParseError, ValueError, OSError) as error:
        line = f"{path}: not VOC's XML ({error}); wanted size/width and size/height"
        findings.fault(kind, line)
        return None
    for element in tree.findall("object"):
        findings.num_objects += 1
        name = element.findtext("name", "")
        if (element.findtext("difficult") or "0").strip() == "0":
            findings.num_counted += 1
            counted.add(name)
        if findings.needs.evaluated:
            _evaluation_faults(path, name, element, findings)
        if name not in class_names:
            line = f"{path}: unknown class {shown(name)}; known: {', '.join(class_names)}"
            findings.fault("unknown classes", line)
        _box(f"{path}: object {shown(name)}", element, size, findings)
    return size


def _tree(path: Path) -> ET.Element:
    """Return the root of an XML file that declares nothing of its own.

    Raises:
        ValueError: it is large, not UTF-8, or declares entities (which can grow without bound).
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError("more than 16 MB")
    text = read_text(path)  # as detectron2 reads it
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type; VOC's files have none")
    return ET.fromstring(text)


def _box(where: str, element: ET.Element, size: tuple[int, int], findings: Findings) -> None:
    try:
        edges = [float(element.findtext(f"bndbox/{key}", "")) for key in EDGES]
    except ValueError:
        edges = []
    if len(edges) != 4 or not all(is_number(edge) for edge in edges):
        line = f"{where} lacks a bndbox of {', '.join(EDGES)} in pixels"
        findings.fault("broken boxes", line)
        return
    first_x, first_y, x1, y1 = edges
    box = (first_x - 1, first_y - 1, x1, y1)  # from 0; the last pixel belongs to the box
    if not (x1 > first_x and y1 > first_y):
        findings.loss("empty boxes", f"{where} has an empty bndbox {edges}")
    else:
        box_faults(findings, f"{where} has a bndbox {edges} that", box, size)


def _evaluation_faults(path: Path, name: str, element: ET.Element, findings: Findings) -> None:
    """Find what detectron2's VOC evaluator would trip over, long after training began."""
    where = f"{path}: object {shown(name)}"
    for key in ("pose", "truncated", "difficult"):
        text = element.findtext(key)
        if text is None or (key != "pose" and not _is_count(text)):
            findings.fault("missing fields", f"{where} lacks {key}, wanted VOC's field")
    box = element.find("bndbox")
    texts = [box.findtext(key, "") for key in EDGES] if box is not None else []
    if all(texts) and not all(_is_count(text) for text in texts):
        line = f"{where} has a bndbox {texts} that is not in whole pixels"
        findings.fault("boxes between pixels", line)


def _is_count(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit()
