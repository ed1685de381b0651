"""Give detectron2 the detection sets of a config, in COCO's or VOC's layout."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances, register_pascal_voc

from transfer.config.data import CocoData, VocData


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
            register_pascal_voc(
                name, str(data.root), data.split, data.year, list(data.class_names)
            )  # fmt: skip
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"


def _register_part(name: str, data: CocoData, fraction: float) -> None:
    def load() -> list[dict[str, Any]]:
        records = load_coco_json(str(data.annotations), str(data.images), name)
        return part_of(records, fraction, data.subset_seed)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=str(data.annotations), image_root=str(data.images), evaluator_type="coco"
    )


def part_of(records: list[dict[str, Any]], fraction: float, seed: int) -> list[dict[str, Any]]:
    """Return a fraction of the records in their order, drawn by the hash of seed and image id.

    Nothing but the ids and the seed decides: not the order, no generator of any library. The result
    lies within that of a larger fraction.
    """

    def draw(record: dict[str, Any]) -> bytes:
        return hashlib.sha256(f"{seed}:{record['image_id']}".encode()).digest()

    count = max(1, round(fraction * len(records)))
    chosen = {record["image_id"] for record in sorted(records, key=draw)[:count]}
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
