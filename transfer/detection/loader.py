"""Sets given to detectron2, and a loader whose draws follow from seed and iteration alone.

So a run that was killed goes on with the images, augmentations and samples it would have had:
nothing is buffered between iterations, and no generator carries state from one to the next.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch.utils.data import IterableDataset, get_worker_info

from transfer.config.data import CocoData, VocData, coco_classes, image_files, part_ids, split_names
from transfer.datasets.voc import objects_of, read_annotation
from transfer.files import no_collection, one_line

Record = dict[str, Any]
Batch = list[tuple[int, int]]  # (position in the order of all images, index of the image)


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
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        is_coco = metadata.get("evaluator_type") == "coco"
        if is_coco and (names := coco_classes(Path(metadata.json_file))):
            return names
        DatasetCatalog.get(name)
    return list(MetadataCatalog.get(name).thing_classes)


def category_ids(name: str) -> dict[int, int]:
    """Return which class (from 0) each category of a set's predictions is."""
    if MetadataCatalog.get(name).get("thing_classes") is None:
        DatasetCatalog.get(name)
    names = class_names(name)
    ids = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
    return dict(ids) if ids else {index: index for index in range(len(names))}


class ImageError(ValueError):
    """An image cannot be read or augmented; the text is one line, also from a worker process.

    torch puts the worker's whole traceback, whose last line is the error's own, before the text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rstrip().rpartition(f"{type(self).__name__}: ")[2])


class ImageMapper(DatasetMapper):  # type: ignore[misc]
    """detectron2's mapper from a record to what a model reads; its errors name the image's file."""

    def __call__(self, record: Record) -> Record:
        """Read and augment one image.

        Raises:
            ImageError: it cannot be read.
        """
        try:
            mapped: Record = super().__call__(record)
        except MemoryError:
            raise
        except Exception as error:  # decoders trip over damage in many ways
            reason = one_line(error) or type(error).__name__
            raise ImageError(
                f"{record['file_name']}: cannot be read ({reason}); replace it and start again (in "
                "a pipeline the set then is another, and stages that use it start anew)"
            ) from error
        return mapped


def derived_seed(*parts: str | int) -> int:
    """Return 31 bits that differ wherever one of the parts does."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def seed_generators(seed: int) -> None:
    """Seed python's, numpy's and torch's generators; those of GPUs where any is in use.

    As `torch.manual_seed` does, which for every kind of device that is not in use formats the
    stack: a millisecond for each image.
    """
    random.seed(seed)
    numpy.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


@dataclass(frozen=True)
class ImageOrder:
    """Order of the images of one of `world_size` processes: shuffled for every pass, endless.

    As in detectron2, the processes take turns in one order, and where `is_wide` is given a batch
    holds either only images wider than high or none.
    """

    num_images: int
    seed: int
    batch_size: int
    is_wide: Sequence[bool] | None = None
    rank: int = 0
    world_size: int = 1

    def images(self) -> Iterator[tuple[int, int]]:
        """Yield (position, index), positions counted over all processes."""
        generator = torch.Generator().manual_seed(self.seed)
        passes = (torch.randperm(self.num_images, generator=generator).tolist() for _ in count())
        order = enumerate(chain.from_iterable(passes))
        yield from islice(order, self.rank, None, self.world_size)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of iterations 0, 1, 2 and so on."""
        waiting: tuple[Batch, Batch] = ([], [])
        for position, index in self.images():
            batch = waiting[self.is_wide is not None and self.is_wide[index]]
            batch.append((position, index))
            if len(batch) == self.batch_size:
                yield batch[:]
                batch.clear()


class TrainingImages(IterableDataset[Record]):
    """Mapped images, batch after batch from iteration `start`; workers take whole batches in turn.

    Every image is augmented with draws that its position decides, whichever worker has it.
    """

    def __init__(
        self,
        records: DatasetFromList,
        mapper: Callable[[Record], Record],
        order: ImageOrder,
        start: int = 0,
    ) -> None:
        self.records = records
        self.mapper = mapper
        self.order = order
        self.start = start

    def __iter__(self) -> Iterator[Record]:
        """Yield this worker's images."""
        worker = get_worker_info()
        first, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for batch in islice(self.order.batches(), self.start + first, None, num_workers):
            for position, index in batch:
                seed_generators(derived_seed("image", self.order.seed, position))
                yield self.mapper(self.records[index])


@dataclass
class SeededLoader:
    """Batches from iteration `start`; python, numpy and torch are seeded before each is handed out.

    What the model draws in a step (the anchors and proposals it is trained on) so depends on seed,
    process and iteration, not on what was drawn before.
    """

    records: DatasetFromList
    is_wide: Sequence[bool] | None
    mapper: Callable[[Record], Record]
    seed: int
    images_per_step: int
    num_workers: int
    start: int = field(default=0, kw_only=True)

    def __iter__(self) -> Iterator[list[Record]]:
        """Yield one list of images per iteration."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        order = ImageOrder(
            len(self.records), self.seed, self.images_per_step // world_size, self.is_wide,
            rank, world_size,
        )  # fmt: skip
        loader = build_detection_train_loader(
            TrainingImages(self.records, self.mapper, order, self.start),
            mapper=None,
            total_batch_size=self.images_per_step,
            aspect_ratio_grouping=False,  # the order has grouped them
            num_workers=self.num_workers,
        )
        for iteration, batch in enumerate(loader, self.start):
            seed_generators(derived_seed("step", self.seed, rank, iteration))
            yield batch


def build_loader(cfg: CfgNode) -> SeededLoader:
    """Return the loader of a config's training sets, in the order that its SEED decides."""
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    with no_collection():
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        packed = DatasetFromList(records, copy=False)
        is_wide = [record["width"] > record["height"] for record in records] if grouped else None
        del records
    return SeededLoader(
        packed,
        is_wide,
        ImageMapper(cfg, is_train=True),
        derived_seed("train", cfg.SEED),
        cfg.SOLVER.IMS_PER_BATCH,
        cfg.DATALOADER.NUM_WORKERS,
    )
