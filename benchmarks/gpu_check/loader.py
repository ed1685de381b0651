"""Views per second of the loader, colours on the device, and training steps fed by the loader."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.results import TINY, WORK, Results, seconds_into, seconds_left
from benchmarks.gpu_check.timing import (
    DEVICE,
    ON_GPU,
    Settings,
    TimedViews,
    merged,
    milliseconds,
    profiled,
    recipe,
    synchronise,
    trainer_of,
)
from benchmarks.loader import LoaderCase, drawn_images
from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import Images
from pretrain.runtime.device import Views
from pretrain.views import ViewLoader
from pretrain.views.batched import RawViews, cut_views, finish_views
from pretrain.views.parameters import BLUR_SIGMA

NUM_WORKERS = 2 if TINY else min(16, len(os.sched_getaffinity(0)))
BATCH = 8 if TINY else 128
MOST_SECONDS = 14  # of a way of colouring, in steady state
FOLDER = WORK / "jpegs"


def loader(results: Results) -> None:
    """Time the loader with colours here and there, the device's share, and a step fed by it."""
    drawn: dict[str, Any] = {"workers": NUM_WORKERS}
    with seconds_into(drawn, "seconds"):
        images = drawn_jpegs(FOLDER)
    results["drawn"] = drawn | {"images": len(images)}
    for colours in ("on_device", "in_loader"):
        results.measure(colours, lambda c=colours: loader_row(c, images))  # type: ignore[misc]
    results.measure("finish_views on the device", lambda: finishing_row(images))
    if seconds_left() > 15 and isinstance(results["on_device"], dict):
        rate = results["on_device"]["views/s"] / 4 / BATCH
        steps = 2 if TINY else int(min(40, max(3, (seconds_left() - 12) * rate / 2)))
        results.measure("training fed by it", lambda: fed_row(images, steps))


def drawn_jpegs(folder: Path) -> Images:
    """Return images of ImageNet's size and weight."""
    folder.mkdir(parents=True, exist_ok=True)
    size, num_images = ((100, 75), 8) if TINY else ((500, 375), 96)
    return drawn_images(LoaderCase("jpegs", size, True, num_images, 4, augment={}), folder)


def config_of(changes: Settings, max_steps: int = 1) -> PretrainConfig:
    """Return ImageNet's recipe over the drawn images, loaded by all cores."""
    common: Settings = {
        "data": {"num_workers": NUM_WORKERS},
        "batch_size": BATCH,
        "loss": {"name": "cw-rgp", "sub_batch": BATCH, "groups": 2},
        "compute": {} if TINY else {"precision": "bf16", "channels_last": True},
    }
    return recipe("imagenet", merged(common, changes), max_steps)


def batches(config: PretrainConfig, images: Images, number: int) -> Iterator[Views]:
    """Yield `number` batches of the project's loader; the images come around again and again."""
    indices = itertools.cycle(range(len(images)))
    rows = [list(itertools.islice(indices, BATCH)) for _ in range(number)]
    return ViewLoader(config, images, DEVICE).batches(0, rows)


def loader_row(colours: str, images: Images) -> dict[str, Any]:
    """Return the rate of the loader in steady state, with nothing else to do."""
    views = batches(config_of({"augment": {"colours": colours}}), images, 2 * NUM_WORKERS + 48)
    row: dict[str, Any] = {}
    with seconds_into(row, "first batch s"):
        next(views)
    for _ in range(2 * NUM_WORKERS):  # what was under way while the workers started
        next(views)
    synchronise()
    begin, number = time.perf_counter(), 0
    while time.perf_counter() - begin < MOST_SECONDS and next(views, None) is not None:
        number += 1
    synchronise()
    seconds = time.perf_counter() - begin
    return row | {"views/s": number * BATCH * 4 / seconds, "batches": number}


def finishing_row(images: Images) -> dict[str, Any]:
    """Return what colours, blur and the way to the device take of a batch."""
    config = config_of({}).augment
    (raw,) = cut_views(images, [(0, i % len(images)) for i in range(BATCH)], 4, 0, config)
    there = RawViews(raw.views.to(DEVICE), raw.rows)
    unblurred = raw.rows.clone()
    unblurred[..., BLUR_SIGMA] = 0.0
    sharp = RawViews(there.views, unblurred)
    pinned = raw.views.pin_memory() if ON_GPU else raw.views
    return {
        "ms": milliseconds(lambda: finish_views(there, config), 5, 2),
        "ms without blur": milliseconds(lambda: finish_views(sharp, config), 5, 2),
        "copy ms": milliseconds(lambda: pinned.to(DEVICE, non_blocking=True), 5, 2),
        "profile": profiled(lambda: finish_views(there, config), top=12),
    }


def fed_row(images: Images, steps: int) -> dict[str, Any]:
    """Return the rate of the training loop with the loader, and how long it waits for that."""
    warm_up = 1 if TINY else NUM_WORKERS + 2
    config = config_of({}, max_steps=warm_up + steps + 1)
    timed = TimedViews(batches(config, images, warm_up + steps + 1))
    with trainer_of(config, timed) as trainer:
        trainer.train()
    ms = timed.step_ms(warm_up)
    return {
        "images/s": BATCH * 1e3 / ms,
        "views/s": 4 * BATCH * 1e3 / ms,
        "ms": ms,
        "of that waiting for data and issuing colours ms": timed.wait_ms(warm_up),
        "steps": steps,
    }
