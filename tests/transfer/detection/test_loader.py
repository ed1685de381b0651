"""The order of training images, against the rule read by hand and detectron2's own sampler."""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import TrainingSampler
from detectron2.utils.env import seed_all_rng

from transfer.config.data import CocoData
from transfer.detection.cli import read_config
from transfer.detection.loader import (
    Batch,
    ImageError,
    ImageOrder,
    SeededLoader,
    build_loader,
    derived_seed,
    register,
    seed_generators,
)
from transfer.detection.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "transfer"
WIDE = [True, False, True, True, False, True, False]


def first(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(islice(batches, count))


def test_the_order_is_that_of_detectron2() -> None:
    wanted = list(islice(TrainingSampler(7, seed=5), 40))
    order = ImageOrder(7, seed=5, batch_size=1)
    assert [index for _, index in islice(order.images(), 40)] == wanted
    assert [position for position, _ in islice(order.images(), 40)] == list(range(40))


def test_processes_share_one_order() -> None:
    whole = list(islice(ImageOrder(7, 5, 1).images(), 40))
    parts = [list(islice(ImageOrder(7, 5, 1, None, rank, 2).images(), 20)) for rank in (0, 1)]
    assert parts == [whole[0::2], whole[1::2]]


def test_batches_hold_images_of_one_kind_in_the_order_they_came() -> None:
    images = list(islice(ImageOrder(7, 5, 1).images(), 60))
    waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    wanted = []
    for position, index in images:
        queue = waiting[WIDE[index]]
        queue.append((position, index))
        if len(queue) == 2:
            wanted.append(queue[:])
            queue.clear()
    assert first(ImageOrder(7, 5, 2, WIDE).batches(), 20) == wanted[:20]
    ungrouped = first(ImageOrder(7, 5, 2).batches(), 20)
    assert ungrouped == [images[i : i + 2] for i in range(0, 40, 2)]


def loader(num_workers: int, is_wide: list[bool] | None = WIDE) -> SeededLoader:
    records = DatasetFromList([{"image": index} for index in range(7)], copy=False)
    return SeededLoader(records, is_wide, Drawing(), 5, 2, num_workers)


class Drawing:
    """Stands for an augmentation: draws from every generator that one may draw from."""

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        drawn = [random.random(), float(numpy.random.rand()), float(torch.rand(1))]
        return record | {"drawn": drawn}


@pytest.mark.parametrize("is_wide", [WIDE, None])
def test_images_and_draws_do_not_depend_on_workers_or_on_the_start(
    is_wide: list[bool] | None,
) -> None:
    batches = list(islice(loader(0, is_wide), 9))
    order = ImageOrder(7, 5, 2, is_wide)
    indices = [[index for _, index in batch] for batch in first(order.batches(), 9)]
    assert [[image["image"] for image in batch] for batch in batches] == indices
    drawn = zip(*(image["drawn"] for batch in batches for image in batch), strict=True)
    assert all(len(set(values)) == 18 for values in drawn)
    with_workers = loader(2, is_wide)
    assert list(islice(with_workers, 9)) == batches
    with_workers.start = 4
    assert list(islice(with_workers, 5)) == batches[4:]


def test_what_a_step_draws_depends_on_its_number_alone() -> None:
    def draws(start: int, count: int) -> list[float]:
        one = loader(1)  # the images are drawn in another process than the step
        one.start = start
        return [float(torch.rand(1)) for _ in islice(one, count)]

    wanted = draws(0, 6)
    assert len(set(wanted)) == 6
    assert draws(3, 3) == wanted[3:]


def test_seeds_are_derived_from_all_parts() -> None:
    seeds = {derived_seed(*parts) for parts in (("a", 1), ("a", 2), ("b", 1), ("a", 1, 0))}
    assert len(seeds) == 4 and all(0 <= seed < 2**31 for seed in seeds)
    assert derived_seed("a", 1) == derived_seed("a", 1)


def test_generators_are_seeded_as_detectron2_does() -> None:
    def draws() -> list[float]:
        return [random.random(), float(numpy.random.rand()), float(torch.rand(1))]

    seed_all_rng(7)
    wanted = draws()
    seed_generators(7)
    assert draws() == wanted


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "absent", "text"])
def test_an_image_that_cannot_be_read_is_named_in_one_line(
    coco: CocoData, num_workers: int, damage: str
) -> None:
    path = coco.images / "001.jpg"
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-200], "text": b"no image"}.get(damage, b""))
    if damage == "absent":
        path.unlink()
    register({"hand_coco": coco})
    changes = ["DATASETS.TRAIN", "('hand_coco',)", "DATASETS.TEST", "('hand_coco',)"]
    changes += ["SOLVER.IMS_PER_BATCH", "1", "DATALOADER.NUM_WORKERS", str(num_workers)]
    cfg = read_config(str(CONFIGS / "digits_faster_rcnn_voc.yaml"), changes)
    for batches in (islice(build_loader(cfg), 3), Trainer.build_test_loader(cfg, "hand_coco")):
        with pytest.raises(ImageError) as error:
            list(batches)
        told = str(error.value)
        assert told.startswith(f"{path}: cannot be read (") and "\n" not in told
        assert "; replace it and start again" in told and "Traceback" not in told
