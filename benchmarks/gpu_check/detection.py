"""Fine-tuning steps and inference of R50-C4 and R50-FPN at 800 px, in every precision."""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.detection import (
    CASES,
    DATASET,
    PRECISIONS,
    case_config,
    draw_dataset,
    take_step,
)
from benchmarks.gpu_check.numerics import relative
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
from transfer.detection.trainer import Trainer

SIZE, ROUNDS, WARM_UP = (128, 1, 0) if TINY else (800, 12, 3)
CHECK_SIZE = 128
BATCHES = (2,) if TINY else (2, 8)


def detection(results: Results) -> None:
    """Time every detector, precision and batch; one of each also in inference or by kernel."""
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        register({DATASET: draw_dataset(Path(folder), SIZE)})
        for (title, file), precision, batch in product(
            CASES.items(), PRECISIONS if ON_GPU else PRECISIONS[:1], BATCHES
        ):
            if precision in ("tf32", "fp16") and batch != BATCHES[0]:
                continue
            row = partial(detector_row, file, precision, batch, Path(folder))
            results.measure(f"{title}, {precision}, {batch} images", row, 10)


def detector_row(file: str, precision: str, batch: int, folder: Path) -> dict[str, Any]:
    """Return milliseconds and images/s of a step without the loader's time, and its memory."""
    free_memory()
    cfg = case_config(file, SIZE, folder, precision=precision, workers=0 if TINY else 8)
    cfg.SOLVER.IMS_PER_BATCH = batch
    trainer = Trainer(cfg)
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
    if batch == BATCHES[0] and precision == "float32":
        row |= inference_row(trainer, images)
    if batch == BATCHES[0] and precision == "bf16":
        row["profile"] = profiled(partial(take_step, trainer, images), 3, 10)
    return row


def detector_on_device() -> dict[str, Any]:
    """A Mask R-CNN R50-FPN: its features against the CPU's, and a step's loss, by precision."""
    file = next(file for title, file in CASES.items() if "FPN" in title)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        register({DATASET: draw_dataset(Path(folder), CHECK_SIZE)})
        for precision in PRECISIONS if ON_GPU else PRECISIONS[:1]:
            cfg = case_config(file, CHECK_SIZE, Path(folder), precision=precision, workers=0)
            trainer = Trainer(cfg)
            images = next(iter(trainer.data_loader))
            backbone = trainer.model.backbone
            x = trainer.model.preprocess_image(images).tensor
            expected = deepcopy(backbone).cpu()(x.cpu())["p2"]
            dtype = torch.bfloat16 if precision == "bf16" else torch.float16
            with torch.autocast("cuda", dtype, enabled=cfg.SOLVER.AMP.ENABLED):
                features = backbone(x)["p2"]
            loss = float(take_step(trainer, images))
            rows[precision] = {"features": relative(features, expected), "loss": loss}
            assert rows[precision]["features"] < 0.05 and math.isfinite(loss), rows
    return rows


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
