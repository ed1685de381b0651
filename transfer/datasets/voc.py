"""Checks of a set in Pascal VOC's layout, of which nothing is trusted."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from transfer.config.data import IMAGE_SUFFIXES, VocData, image_files, path_fault
from transfer.datasets.findings import (
    ARCHIVES,
    Edges,
    Finding,
    Findings,
    ImageJob,
    box_findings,
    is_dropped_box,
    shown,
)
from transfer.files import few, is_number, number_of, read_text, share_of

EDGES = ("xmin", "ymin", "xmax", "ymax")
FOLDERS = ("Annotations", "JPEGImages", "ImageSets")
MAX_BYTES = 16_000_000
MAX_SIDE = 1_000_000
MIN_TO_SPLIT = 4  # annotations: a split has at least two
Size = tuple[int, int]  # width, height


class VocObject(NamedTuple):
    """An object as detectron2 trains on it; `edges` count from 1, the last pixel belongs to it."""

    name: str
    edges: tuple[float, ...]
    is_difficult: bool


def check_voc(data: VocData, findings: Findings) -> Iterator[Finding]:
    """Yield what is wrong with the annotations; count them and the images in `findings`."""
    names: dict[str, None] = {}
    yield from _layout(data)
    yield from _split(data, names)
    if findings.needs.masks:
        line = f"{data.root}: VOC's layout has no masks, but MODEL.MASK_ON asks for them"
        yield "missing masks", line
    if len(set(data.class_names)) < len(data.class_names):
        yield "classes named twice", f"{data.root}: class_names holds a name twice"
    findings.num_images = len(names)
    findings.tally.class_names = data.class_names
    images = image_files(data.root / FOLDERS[1], names)
    missing: list[Path] = []
    unknown: dict[str, list[Path]] = {}
    fractions: list[str] = []
    has_folders = [(data.root / folder).is_dir() for folder in FOLDERS]
    for name in names if has_folders[0] else ():
        path = data.root / "Annotations" / f"{name}.xml"
        try:
            tree, size = read_annotation(path)
        except FileNotFoundError:
            missing.append(path)
            continue
        except (ET.ParseError, ValueError, OSError) as error:
            line = f"{path}: not VOC's XML ({error}); wanted size/width and size/height"
            yield "broken annotation files", line
            continue
        if len(images[name]) > 1:
            line = f"{path}: two images have its name, {few([str(file) for file in images[name]])}"
            yield "images of one name", f"{line}; keep one of them"
        elif has_folders[1]:
            findings.jobs.append(ImageJob(images[name][0], size, path))
        image = str(images[name][0].relative_to(findings.image_root))
        yield from findings.set_aside(
            image, _objects(path, tree, size, findings, unknown, fractions)
        )
    if missing:
        yield "missing annotation files", _missing_line(missing, len(names))
    yield from _unknown_lines(unknown, data.class_names)
    yield from _fraction_lines(fractions, findings.num_objects)
    findings.published = len(names), findings.tally.counted.total()


def make_splits(root: Path, seed: str) -> dict[Path, int]:
    """Write the splits trainval and test of the annotations below `root`; return their counts.

    A fifth of the images is for the test, drawn by the hash of seed and name.

    Raises:
        ValueError: the seed is no whole number, there are no annotations to split, or one of the
            files is there already.
    """
    if not re.fullmatch("-?[0-9]{1,18}", seed):
        raise ValueError(f"the seed of --make-splits is {shown(seed)}, wanted a whole number")
    folder = root / "Annotations"
    names = sorted(path.stem for path in folder.glob("[!.]*.xml"))
    if len(names) < MIN_TO_SPLIT:
        raise ValueError(
            f"{folder}: {number_of(len(names), 'annotation')} (*.xml), wanted at least "
            f"{MIN_TO_SPLIT} to split"
        )
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{int(seed)}:{name}".encode()).digest())
    num_test = max(2, round(len(names) / 5))
    splits = {"trainval": sorted(drawn[num_test:]), "test": sorted(drawn[:num_test])}
    files = {root / "ImageSets" / "Main" / f"{split}.txt": splits[split] for split in splits}
    if present := [str(path) for path in files if path.exists()]:
        raise ValueError(f"{', '.join(present)}: already there; nothing is overwritten")
    for path, lines in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write("".join(f"{name}\n" for name in lines))
    return {path: len(lines) for path, lines in files.items()}


def _unknown_lines(
    unknown: dict[str, list[Path]], class_names: tuple[str, ...]
) -> Iterator[Finding]:
    """Yield one line for each class that has no name in the config."""
    for name, paths in unknown.items():
        line = f"{paths[0]}: unknown class {shown(name)}; known: {', '.join(class_names)}"
        more = f"; {len(paths):,} objects have it" if len(paths) > 1 else ""
        yield "unknown classes", f"{line}{more}"


def _missing_line(missing: list[Path], num_names: int) -> str:
    """Return one line for all annotations that are not there."""
    line = f"{missing[0]}: no such file; the split lists it"
    if len(missing) > 1:
        line += f" ({len(missing):,} of {num_names:,} annotations are missing)"
    name = missing[0].stem
    if Path(name).suffix.lower() in (".xml", *IMAGE_SUFFIXES):
        line += f"; a split names images without suffix, such as {Path(name).stem}"
    return line


def _layout(data: VocData) -> Iterator[Finding]:
    """Yield all folders that are missing, with folders of nearly their name."""
    present = sorted(data.root.iterdir()) if data.root.is_dir() else []
    folders = [path.name for path in present if path.is_dir()]
    archives = [path.name for path in present if path.name.lower().endswith(ARCHIVES)]
    for folder in FOLDERS:
        if folder in folders or not data.root.is_dir():
            continue
        line = f"{data.root / folder}: no such folder, wanted by VOC's layout"
        if near := [name for name in folders if name.casefold() == folder.casefold()]:
            yield "missing folders", f"{line}; rename {data.root / near[0]}"
        elif folder != FOLDERS[-1]:  # of that the missing split speaks
            unpack = f"; unpack {few(archives)}" if archives else ""
            yield "missing folders", f"{line}; folders there: {few(folders) or 'none'}{unpack}"


def _split(data: VocData, names: dict[str, None]) -> Iterator[Finding]:
    """Add a split's image names, as detectron2 and the development kit read them, to `names`."""
    kind, path = "broken splits", data.index_file
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        why = why if data.root.is_dir() else f"{data.root} is no folder"
        line = f"{path}: cannot be read ({why}); wanted a line for each image, its name without "
        line += "folder and suffix, such as 000005"
        if others := sorted(other.stem for other in path.parent.glob("*.txt") if other != path):
            line += f"; splits there: {few(others)}"
        elif data.root.is_dir():
            line += f"; tools/check_data.py --make-splits 0 {data.root} writes trainval and test"
        yield kind, line
        return
    for number, text in enumerate(lines, start=1):
        words = text.split()
        name = words[0] if words else ""
        fault = path_fault(name)
        if not words:
            fault = "is a blank line"
        elif len(words) > 1 or "#" in name or "\ufeff" in name:
            fault = "is not one name, without spaces, # and byte-order mark"
        elif name in names:
            fault = "is listed twice"
        if fault is None:
            names[name] = None
        else:
            yield kind, f"{path}: line {number}, {shown(text)}, {fault}"
    if len(lines) < 2:
        yield kind, f"{path}: {number_of(len(lines), 'image name')}, wanted at least 2"


def read_annotation(path: Path) -> tuple[ET.Element, Size]:
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


def objects_of(tree: ET.Element) -> Iterator[VocObject]:
    """Yield the objects of an annotation that the check accepts; what is not said is not difficult.

    Neither pose nor truncated is read by training or evaluation.
    """
    for element in tree.findall("object"):
        edges = tuple(float(element.findtext(f"bndbox/{key}", "")) for key in EDGES)
        yield VocObject(element.findtext("name", ""), edges, _is_difficult(element))


def _is_difficult(element: ET.Element) -> bool:
    return (element.findtext("difficult") or "").strip().strip("0") != ""


def _fraction_lines(places: list[str], num_objects: int) -> Iterator[Finding]:
    """Yield one line for all boxes that seem to be fractions of their image."""
    if places:
        share = share_of(len(places), num_objects, "object", "has a bndbox", "have bndboxes")
        line = f"{places[0]}: {share} within the first pixel, in fractions of the image it seems"
        yield "boxes in fractions", f"{line}; wanted pixels"


def _objects(
    path: Path,
    tree: ET.Element,
    size: Size,
    findings: Findings,
    unknown: dict[str, list[Path]],
    fractions: list[str],
) -> Iterator[Finding]:
    """Yield what is wrong with the objects of an image; count them, also by unknown class.

    Boxes within the first pixel that are no whole pixels are kept in `fractions`, for one line.
    """
    elements = tree.findall("object")
    tally, num_counted = findings.tally, 0
    for element in elements:
        name, is_difficult = element.findtext("name", ""), _is_difficult(element)
        edges = _edges(element)
        tally.trained[name] += edges is None or not is_dropped_box(_corners(edges), size)
        tally.counted[name] += not is_difficult
        num_counted += not is_difficult
        where = f"{path}: object {shown(name)}"
        if name not in findings.tally.class_names:
            unknown.setdefault(name, []).append(path)
        if edges and max(edges) <= 1 and not all(edge.is_integer() for edge in edges):
            fractions.append(where)
        else:
            yield from _object(where, element, size, findings.needs.evaluated)
    findings.num_objects += len(elements)
    tally.add_image(path.stem, num_counted, len(elements))


def _object(where: str, element: ET.Element, size: Size, evaluated: bool) -> Iterator[Finding]:
    """Yield what is wrong with one object in an image of `size`.

    An evaluation wants whole pixels, and to know what is difficult.
    """
    difficult = (element.findtext("difficult") or "0").strip()
    if evaluated and not (difficult.isascii() and difficult.isdigit()):
        yield "flags", f"{where} has difficult {shown(difficult)}, wanted 0 or 1"
    edges = _edges(element)
    if edges is None:
        yield "broken boxes", f"{where} lacks a bndbox of {', '.join(EDGES)} in pixels"
        return
    if evaluated and not all(edge.is_integer() for edge in edges):
        texts = [element.findtext(f"bndbox/{key}") for key in EDGES]
        yield "boxes between pixels", f"{where} has a bndbox {texts} that is not in whole pixels"
    x0, y0, x1, y1 = edges
    if x0 == x1 or y0 == y1:
        line = f"{where}: bndbox {edges} is one pixel wide or high; training takes it as it is"
        yield "narrow boxes", line
    yield from box_findings(f"{where}: bndbox {edges}", _corners(edges), size)


def _edges(element: ET.Element) -> list[float] | None:
    """Return the numbers of an object's bndbox, None where they are not all there."""
    try:
        edges = [float(element.findtext(f"bndbox/{key}", "")) for key in EDGES]
    except ValueError:
        return None
    return edges if all(map(is_number, edges)) else None


def _corners(edges: list[float]) -> Edges:
    """Return a box as detectron2 has it; a bndbox counts from 1 and holds its last pixel."""
    x0, y0, x1, y1 = edges
    return x0 - 1, y0 - 1, x1, y1
