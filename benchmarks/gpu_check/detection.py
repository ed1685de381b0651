"""Fine-tuning steps and inference of R50-C4 and R50-FPN at 800 px, in every precision."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

from benchmarks.detection import CASES, DATASET, case_config, draw_dataset
from benchmarks.gpu_check.results import TINY, Results
from benchmarks.gpu_check.timing import (
    ON_GPU,
    free_memory,
    milliseconds,
    peak_gb,
    profiled,
    synchronise,
)
from transfer.detection.loader import register
from transfer.detection.run import memory_estimate
from transfer.detection.trainer import Trainer, train_in_bfloat16

SIZE, ROUNDS, WARM_UP = (128, 1, 0) if TINY else (800, 12, 3)
PRECISIONS = ("float32", "fp16", "bf16") if ON_GPU else ("float32",)
BATCHES = (2,) if TINY else (2, 8)


def detection(results: Results) -> None:
    """Time every detector, precision and batch; one of each also in inference or by kernel."""
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        register({DATASET: draw_dataset(Path(folder), SIZE)})
        for (title, file), precision, batch in product(CASES.items(), PRECISIONS, BATCHES):
            if precision == "fp16" and batch != BATCHES[0]:
                continue
            row = partial(detector_row, file, precision, batch, Path(folder))
            results.measure(f"{title}, {precision}, {batch} images", row, 10)


def detector_row(file: str, precision: str, batch: int, folder: Path) -> dict[str, Any]:
    """Return milliseconds and images/s of a step without the loader's time, and its memory."""
    free_memory()
    mixed = precision != "float32"
    cfg = case_config(file, SIZE, folder, amp=mixed, workers=0 if TINY else 8)
    cfg.SOLVER.IMS_PER_BATCH = batch
    trainer = Trainer(cfg)
    if precision == "bf16":
        train_in_bfloat16(trainer.model, cfg.MODEL.DEVICE)
    images = next(iter(trainer.data_loader))
    times = []
    for _ in range(WARM_UP + ROUNDS):
        synchronise()
        begin = time.perf_counter()
        take_step(trainer, images)
        synchronise()
        times.append(1e3 * (time.perf_counter() - begin))
    ms = statistics.median(times[WARM_UP:])
    row: dict[str, Any] = {"ms": ms, "images/s": batch * 1e3 / ms} | peak_gb()
    row["estimate"] = memory_estimate(cfg, trainer.model, trainer.optimizer, 1)[:70]
    if batch == BATCHES[0] and not mixed:
        row |= inference_row(trainer, images)
    if batch == BATCHES[0] and precision == "bf16":
        row["profile"] = profiled(partial(take_step, trainer, images), 3, 10)
    return row


def take_step(trainer: Trainer, images: list[dict[str, Any]]) -> None:
    """Take a step on the same images."""
    with EventStorage():
        with torch.autocast("cuda", enabled=trainer.cfg.SOLVER.AMP.ENABLED):
            loss = sum(trainer.model(images).values())
        trainer.optimizer.zero_grad()
        assert isinstance(loss, Tensor)
        torch.autograd.backward(loss)
        trainer.optimizer.step()


def inference_row(trainer: Trainer, images: list[dict[str, Any]]) -> dict[str, Any]:
    """Return milliseconds of an image in float32, and on a GPU in bf16."""
    image = [{name: value for name, value in images[0].items() if name != "instances"}]
    infer: Callable[[], object] = partial(trainer.model.eval(), image)
    rounds, warm_up = (1, 1) if TINY else (8, 2)
    with torch.no_grad():
        row: dict[str, Any] = {"inference ms": milliseconds(infer, rounds, warm_up)}
        if ON_GPU:
            try:
                with torch.autocast("cuda", torch.bfloat16):
                    row["inference bf16 ms"] = milliseconds(infer, rounds, warm_up)
            except RuntimeError as error:
                row["inference bf16 ms"] = f"{type(error).__name__}: {error}"[:150]
    return row
