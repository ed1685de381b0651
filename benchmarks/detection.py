"""Timings of fine-tuning; `tools/benchmark.py detection` prints them.

On a GPU at 800 pixels with and without AMP, on a CPU at 128 pixels and with 16 proposals
an image. All images are copies of one, unflipped, and the learning rate is 0: every step
is the same work.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import Tensor

from benchmarks.device import best_device, device_name, peak_mb, tensors_mb, wait_for
from benchmarks.rows import Table, print_rows
from benchmarks.trainer import WRITE_PERIOD, Cost, trainer_cost
from transfer.config.data import CocoData
from transfer.detection.loader import register
from transfer.detection.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "transfer"
CASES = {
    "Faster R-CNN R50-C4": "voc_faster_rcnn_r50_c4_24k.yaml",
    "Mask R-CNN R50-FPN": "coco_mask_rcnn_r50_fpn_1x.yaml",
}
PRECISIONS = ("float32", "tf32", "fp16", "bf16")
PARTS = ("data", "forward", "backward", "optimiser")
DATASET = "benchmark"
NUM_IMAGES, NUM_BOXES, NUM_CLASSES = 8, 6, 3
WARM_UP = 1
COLUMNS = (
    "case", "step:.3f", *(f"{part}:.3f" for part in PARTS), "images/s:.2f", "trainer adds %:.3f",
    "inference s:.3f", "peak MB:,.0f",
)  # fmt: skip
BATCH = 2
SIZES = {"cpu": 128, "cuda": 800}  # pixels
ROUNDS = {"cpu": 3, "cuda": 20}
CPU_PROPOSALS = 16
COST_SIZE, COST_BLOCKS = 32, 100
SHARE = 0.02  # of a step, that the trainer may add


def benchmark_detection(
    *, rounds: int | None = None, threads: int | None = None, workers: int = 0
) -> list[Table]:
    """Print seconds of an iteration, by part, and of an image in inference, and peak memory.

    Also what the trainer adds to detectron2's plain loop.
    The latter is measured without a detector, in milliseconds, and told as a part of each step.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    quiet = logging.getLogger("detectron2")  # it would print every model
    quiet.setLevel(logging.INFO)
    quiet.propagate = False
    quiet.addHandler(logging.NullHandler())
    device = best_device()
    size = SIZES[device.type]
    rounds = rounds or ROUNDS[device.type]
    name = device_name(device)
    machine = f"{name}, {torch.get_num_threads()} threads"
    cost = trainer_cost_here()
    print(cost_line(cost, machine), flush=True)
    loops = Table("loops without a detector", {"device": name}, [cost.numbers()])

    def rows(folder: Path) -> Iterator[list[Any]]:
        register({DATASET: draw_dataset(folder, size)})
        precisions = PRECISIONS if device.type == "cuda" else PRECISIONS[:1]
        for (case, file), precision in product(CASES.items(), precisions):
            cfg = case_config(file, size, folder, precision=precision, workers=workers)
            parts, *others = measured(cfg, rounds)
            yield [f"{case}, {precision}", *row_of(parts, cost), *others]

    with tempfile.TemporaryDirectory() as folder:
        table = print_rows(
            f"Fine-tuning, {BATCH} images of {size} px, seconds, {machine}, "
            f"load {os.getloadavg()[0]:.1f}, median of {rounds}",
            COLUMNS,
            rows(Path(folder)),
            device=name,
            size=size,
        )
    return [loops, table]


def row_of(parts: dict[str, float], cost: Cost) -> list[float]:
    """Return the numbers of a row."""
    step = sum(parts.values())
    return [step, *(parts[name] for name in PARTS), BATCH / step, cost.added / step / 10]


def trainer_cost_here() -> Cost:
    """Return what the trainer adds to an iteration, with a loader in the same process."""
    with tempfile.TemporaryDirectory() as folder:
        register({DATASET: draw_dataset(Path(folder), COST_SIZE)})
        file = CASES["Mask R-CNN R50-FPN"]
        cfg = case_config(file, COST_SIZE, Path(folder), precision="float32", workers=0)
        return trainer_cost(cfg, COST_BLOCKS)


def cost_line(cost: Cost, machine: str) -> str:
    """Return what was measured of the trainer, in a line."""
    first, third = cost.quartiles
    return (
        f"Loops alone, no detector, 2 images of {COST_SIZE} px, {machine}: detectron2's plain loop "
        f"{cost.plain:.2f} ms an iteration; the trainer adds {cost.added:.2f} ms (median of "
        f"{len(cost.differences)} differences of {WRITE_PERIOD} iterations, quartiles {first:.2f} "
        f"to {third:.2f}, standard error {cost.standard_error:.2f}): with two standard errors more "
        f"within {100 * SHARE:.0f} % of every step of {cost.least_step(SHARE):.0f} ms or longer"
    )


def measured(cfg: CfgNode, rounds: int) -> tuple[dict[str, float], float, float]:
    """Return the median seconds of a step's parts, those of an image in inference, and peak MB."""
    trainer = Trainer(cfg)
    parts = parts_of_a_step(trainer, rounds)
    images = next(iter(trainer.data_loader))
    there = tensors_mb(trainer.model, trainer.optimizer)
    peak = there + peak_mb(partial(take_step, trainer, images), best_device())
    return parts, inference_s(trainer, images, rounds), peak


def parts_of_a_step(trainer: Trainer, rounds: int) -> dict[str, float]:
    """Return the median seconds of each part of an iteration."""
    batches = iter(trainer.data_loader)
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    for round_ in range(rounds + WARM_UP):
        marks = [_now()]
        images = next(batches)
        marks.append(_now())
        take_step(trainer, images, lambda marks=marks: marks.append(_now()))  # type: ignore[misc]
        for name, (begin, end) in zip(PARTS, pairwise(marks), strict=True):
            if round_ >= WARM_UP:
                times[name].append(end - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def take_step(
    trainer: Trainer, images: list[dict[str, Any]], mark: Callable[[], object] = lambda: None
) -> Tensor:
    """Take a step on images; call `mark` after each part but `data`; return the loss."""
    mixed = trainer.cfg.SOLVER.AMP.ENABLED
    scaler = trainer._trainer.grad_scaler if mixed else torch.amp.GradScaler("cpu", enabled=False)
    with EventStorage():
        with torch.autocast("cuda", enabled=mixed):
            loss = sum(trainer.model(images).values())
        mark()
        trainer.optimizer.zero_grad()
        assert isinstance(loss, Tensor)
        torch.autograd.backward(scaler.scale(loss))
        mark()
        scaler.step(trainer.optimizer)
        scaler.update()
        mark()
    return loss.detach()


def inference_s(trainer: Trainer, images: list[dict[str, Any]], rounds: int) -> float:
    """Return the median seconds of one image, as an evaluation computes it."""
    image = {name: value for name, value in images[0].items() if name != "instances"}
    infer, times = trainer.model.eval(), []
    with torch.no_grad():
        for _ in range(rounds + WARM_UP):
            begin = _now()
            infer([image])
            times.append(_now() - begin)
    trainer.model.train()
    return statistics.median(times[WARM_UP:])


def case_config(file: str, size: int, folder: Path, *, precision: str, workers: int) -> CfgNode:
    """Return a shipped config at one size, for 2 images on this machine, that learns nothing."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(CfgNode.load_yaml_with_base(str(CONFIGS / file))))
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    if cfg.MODEL.DEVICE == "cpu":
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = CPU_PROPOSALS
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = CPU_PROPOSALS
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (DATASET,)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (size,), "none"
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE, solver.BASE_LR = BATCH, 0, 0.0
    solver.CHECKPOINT_PERIOD = solver.MAX_ITER
    solver.AMP.ENABLED = precision in ("fp16", "bf16")
    solver.AMP.PRECISION = precision  # which detectron2 0.6 does not know, nor this:
    cfg.MODEL.PRECISION = "tf32" if precision == "tf32" else "float32"
    cfg.TEST.PRECISE_BN.ENABLED = False
    cfg.OUTPUT_DIR, cfg.SEED = str(folder), 0
    return cfg


def draw_dataset(folder: Path, size: int) -> CocoData:
    """Write copies of a noisy image, 4 to 3, with boxes and polygons, in COCO's layout."""
    generator = numpy.random.default_rng(0)
    width, height = size * 4 // 3, size
    pixels = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=numpy.uint8)
    image = Image.fromarray(pixels).resize((width, height))
    boxes = []
    for _ in range(NUM_BOXES):
        x, y = (int(generator.integers(0, side // 2)) for side in (width, height))
        w, h = (int(generator.integers(side // 8, side // 2)) for side in (width, height))
        boxes.append((x, y, w, h))
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": i + 1, "name": f"class {i}"} for i in range(NUM_CLASSES)]
    for number in range(NUM_IMAGES):
        image.save(folder / f"{number}.jpg")
        entry = {"id": number, "file_name": f"{number}.jpg", "width": width, "height": height}
        content["images"].append(entry)
        for index, (x, y, w, h) in enumerate(boxes):
            content["annotations"].append({
                "id": len(content["annotations"]) + 1, "image_id": number, "iscrowd": 0,
                "category_id": 1 + index % NUM_CLASSES, "bbox": [x, y, w, h], "area": w * h,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            })  # fmt: skip
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(content), encoding="utf-8")
    return CocoData(annotations=annotations, images=folder)


def _now() -> float:
    """Return the time when everything begun is done."""
    wait_for(best_device())
    return time.perf_counter()
