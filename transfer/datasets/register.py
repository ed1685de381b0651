"""Give detectron2 the detection sets of a config, in COCO's or VOC's layout."""

from __future__ import annotations

import importlib.metadata
import io
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathHandler, PathManager

from transfer.config.data import CocoData, VocData
from transfer.datasets.files import image_files, part_ids, split_names
from transfer.datasets.voc import EDGES, objects_of, read_annotation

PLAIN = "plain-voc://"  # before a path: the annotation file, for detectron2's evaluation


def register(datasets: Mapping[str, CocoData | VocData]) -> None:
    """Register the sets under their names; a set that detectron2 knows by that name is replaced."""
    restore_numpy_names()
    for name, data in datasets.items():
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        if isinstance(data, CocoData) and data.fraction is not None:
            _register_part(name, data, data.fraction)
        elif isinstance(data, CocoData):
            register_coco_instances(name, {}, str(data.annotations), str(data.images))
        else:
            DatasetCatalog.register(name, partial(voc_records, data))
            MetadataCatalog.get(name).set(
                thing_classes=list(data.class_names), dirname=str(data.root), year=data.year,
                split=data.split, evaluator_type="pascal_voc",
            )  # fmt: skip


def voc_records(data: VocData) -> list[dict[str, Any]]:
    """Return detectron2's records of a set in VOC's layout, equal to `load_voc_instances`.

    They also name images that are no `.jpg`. Boxes count from 0 and end behind their last pixel.
    """
    names = split_names(data)
    images = image_files(data.root / "JPEGImages", names)
    records = []
    for name in names:
        tree, (width, height) = read_annotation(data.root / "Annotations" / f"{name}.xml")
        annotations = [
            {
                "category_id": data.class_names.index(entry.name),
                "bbox": [x0 - 1, y0 - 1, x1, y1],
                "bbox_mode": BoxMode.XYXY_ABS,
            }
            for entry in objects_of(tree)
            for x0, y0, x1, y1 in [entry.edges]
        ]
        records.append(
            {"file_name": str(images[name][0]), "image_id": name, "height": height, "width": width,
             "annotations": annotations}
        )  # fmt: skip
    return records


class PlainAnnotations(PathHandler):  # type: ignore[misc]
    """Annotation files as detectron2's evaluation reads them: what it wants and no one says is 0.

    It stops at an object without pose, truncated or difficult, and at the pixel `30.0`.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PLAIN]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> io.StringIO:
        tree, _size = read_annotation(Path(path.removeprefix(PLAIN)))
        root = ET.Element("annotation")
        for entry in objects_of(tree):
            element = ET.SubElement(root, "object")
            values = {"name": entry.name, "pose": "", "truncated": 0}
            for key, value in (values | {"difficult": int(entry.is_difficult)}).items():
                ET.SubElement(element, key).text = str(value)
            box = ET.SubElement(element, "bndbox")
            for key, edge in zip(EDGES, entry.edges, strict=True):
                ET.SubElement(box, key).text = f"{edge:.0f}"
        return io.StringIO(ET.tostring(root, encoding="unicode"))


def plain_annotations(root: Path) -> str:
    """Return the folder under which detectron2's evaluation finds a set's annotations in full."""
    PathManager.register_handler(PlainAnnotations(), allow_override=True)
    return f"{PLAIN}{root / 'Annotations'}"


def _register_part(name: str, data: CocoData, fraction: float) -> None:
    def load() -> list[dict[str, Any]]:
        records = load_coco_json(str(data.annotations), str(data.images), name)
        return part_of(records, fraction, data.subset_seed)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=str(data.annotations), image_root=str(data.images), evaluator_type="coco"
    )


def part_of(records: list[dict[str, Any]], fraction: float, seed: int) -> list[dict[str, Any]]:
    """Return the records of the images that `part_ids` draws, in their order."""
    chosen = part_ids((record["image_id"] for record in records), fraction, seed)
    return [record for record in records if record["image_id"] in chosen]


def restore_numpy_names() -> None:
    """Give numpy back the aliases that compiled builds of detectron2 0.6 use (gone since 1.24)."""
    if importlib.metadata.version("detectron2") == "0.6":
        for alias in (bool, int, float, str):
            if alias.__name__ not in vars(numpy):
                setattr(numpy, alias.__name__, alias)


def class_names(name: str) -> list[str]:
    """Return the class names of a registered set; reads the annotations where needed."""
    if MetadataCatalog.get(name).get("thing_classes") is None:
        DatasetCatalog.get(name)
    return list(MetadataCatalog.get(name).thing_classes)


def category_ids(name: str) -> dict[int, int]:
    """Return which class (from 0) each category of a set's predictions is."""
    names = class_names(name)
    ids = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
    return dict(ids) if ids else {index: index for index in range(len(names))}
