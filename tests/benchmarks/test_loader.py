"""The loader's benchmark: the same recipe on both sides, and cases that are valid."""

import dataclasses
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.loader import (
    BATCH,
    BATCHES_PER_WORKER,
    LOADER_CASES,
    PlainViews,
    cpu_seconds,
    drawn_images,
    loader_config,
    loader_rates,
    own_pass,
    pass_batches,
    plain_pass,
    plain_view,
)
from pretrain.config.data import AugmentConfig
from pretrain.data.images import open_images
from pretrain.views.batched import cut_views, finish_batch

TINY = dataclasses.replace(
    LOADER_CASES[0], image_size=(60, 45), num_images=6, num_views=2, augment={"size": 24}
)


@pytest.mark.parametrize("jpeg", [True, False])
def test_every_way_loads_all_views(jpeg: bool) -> None:
    case = dataclasses.replace(TINY, jpeg=jpeg)
    ways = ("by_view", "in_loader", "reduced")
    for rates in loader_rates(case, ways, rounds=1, workers=0):
        assert set(rates) == {"PIL", *ways}
        assert all(rate > 0 for rate in rates.values())


def test_the_workers_cpu_seconds_count() -> None:
    before = cpu_seconds()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        burnt = pool.apply(burn, (0.3,))
        assert 0.2 < burnt <= cpu_seconds() - before + 0.05


def burn(seconds: float) -> float:
    while time.process_time() < seconds:
        pass
    return time.process_time()


@pytest.mark.parametrize("workers", [0, 1, 2, 16, 48])
@pytest.mark.parametrize("num_images", [6, 64, 320])
def test_a_pass_keeps_every_worker_busy(num_images: int, workers: int) -> None:
    batches = pass_batches(num_images, workers)
    assert len(batches) >= workers * BATCHES_PER_WORKER
    assert all(len(batch) == BATCH for batch in batches)
    assert {index for batch in batches for index in batch} == set(range(num_images))


def test_both_sides_load_the_same_number_of_views(tmp_path: Path) -> None:
    images = drawn_images(TINY, tmp_path)
    config = loader_config(TINY, "in_loader", 1, tmp_path)
    for one_pass in (plain_pass(images, config), own_pass(images, config)):
        assert sum(one_pass(0)) == 2 * BATCH * BATCHES_PER_WORKER


@pytest.mark.parametrize("before_crop", [True, False])
def test_the_plain_pipeline_has_the_recipes_distribution(tmp_path: Path, before_crop: bool) -> None:
    augment = {"size": 24, "blur_probability": 0.5, "colours_before_crop": before_crop}
    case = dataclasses.replace(TINY, num_images=1, num_views=250, augment=augment)
    images = drawn_images(case, tmp_path)
    config = loader_config(case, "in_loader", 0, tmp_path)
    torch.manual_seed(0)
    plain = PlainViews(images, plain_view(config.augment), case.num_views)[0]
    raw = cut_views(images, [(0, 0)], case.num_views, 0, config.augment)
    ours = finish_batch(raw, config.augment)[:, 0]
    for measure in (
        lambda views: views.mean((1, 2, 3)),
        lambda views: views.std((2, 3)).mean(1),
        lambda views: (views[..., 1:] - views[..., :-1]).abs().mean((1, 2, 3)),
    ):
        a, b = measure(plain), measure(ours)
        assert abs(float(a.mean() - b.mean())) < 4 * float((a.var() + b.var()).div(250).sqrt())


def test_drawn_jpegs_weigh_what_photographs_do(tmp_path: Path) -> None:
    case = dataclasses.replace(LOADER_CASES[0], num_images=2)
    assert len(drawn_images(case, tmp_path)) == 2
    sizes = [path.stat().st_size for path in tmp_path.glob("*.jpg")]
    assert all(50_000 < size < 200_000 for size in sizes)
    with Image.open(next(tmp_path.glob("*.jpg"))) as image:
        assert image.size == (500, 375)


def test_without_chance_the_plain_view_is_the_normalised_image(tmp_path: Path) -> None:
    config = AugmentConfig(
        size=24, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter_probability=0, grayscale=0,
        mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    Image.new("RGB", (24, 24), (255, 0, 51)).save(tmp_path / "a.png")
    images = open_images(loader_config(TINY, "by_view", 0, tmp_path).data)
    (view,) = PlainViews(images, plain_view(config), 1)[0]
    assert view[:, 3, 4].tolist() == pytest.approx([1.0, 0.0, 0.2])
