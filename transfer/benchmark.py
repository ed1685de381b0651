"""Timings of fine-tuning; `tools/benchmark.py detection` prints them.

On a GPU at 800 pixels with and without AMP, on a CPU at 128 pixels and with 16 instead of 512
proposals an image. All images are copies of one, unflipped; both loops begin with the same weights
and, the learning rate being 0, keep them: every step is the same work.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import default_writers
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from transfer.config import CocoData
from transfer.datasets import register
from transfer.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "transfer"
CASES = {
    "Faster R-CNN R50-C4": "voc_faster_rcnn_r50_c4_24k.yaml",
    "Mask R-CNN R50-FPN": "coco_mask_rcnn_r50_fpn_1x.yaml",
}
PARTS = ("data", "forward", "backward", "optimiser")
DATASET = "benchmark"
NUM_IMAGES, NUM_BOXES, NUM_CLASSES = 8, 6, 3
WARM_UP = 1
ROUNDS = {"cpu": 3, "cuda": 20}
CPU_PROPOSALS = 16
Step = Callable[[], object]


def benchmark_detection(
    *, rounds: int | None = None, threads: int | None = None, workers: int = 0
) -> None:
    """Print seconds per iteration, by part, and what the trainer adds to detectron2's plain loop.

    The two loops take turns; on a CPU they are compared by processor time. Other work on the
    machine only adds to it, so the least of each counts.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    quiet = logging.getLogger("detectron2")  # it would print every model
    quiet.setLevel(logging.INFO)
    quiet.propagate = False
    quiet.addHandler(logging.NullHandler())
    on_gpu = torch.cuda.is_available()
    size = 800 if on_gpu else 128
    rounds = rounds or ROUNDS["cuda" if on_gpu else "cpu"]
    with tempfile.TemporaryDirectory() as folder:
        register({DATASET: draw_dataset(Path(folder), size)})
        name = torch.cuda.get_device_name() if on_gpu else platform.machine()
        title = f"Fine-tuning, 2 images of {size} px, {name}, {torch.get_num_threads()} threads"
        for case, file in CASES.items():
            for amp in (False, True) if on_gpu else (False,):
                print(f"{case}: {3 * (rounds + WARM_UP)} steps ..", flush=True)
                cfg = case_config(file, size, Path(folder), amp=amp, workers=workers)
                load = f"load {os.getloadavg()[0]:.1f}"
                table = Table(title=f"{case}{', AMP' if amp else ''}. {title}, {load}; seconds")
                for column in ("step", *PARTS, "images/s", "trainer / plain", "hooks ms"):
                    table.add_column(column, justify="right")
                table.add_row(*measure(cfg, rounds))
                Console().print(table)


def measure(cfg: CfgNode, rounds: int) -> list[str]:
    """Return a row of the table."""
    parts = parts_of_a_step(cfg, rounds)
    total = sum(parts.values())
    ratio, hooks_ms = trainer_against_plain(cfg, rounds)
    seconds = [f"{value:.3f}" for value in (total, *(parts[name] for name in PARTS))]
    return [
        *seconds, f"{cfg.SOLVER.IMS_PER_BATCH / total:.2f}", f"{ratio:.3f}", f"{hooks_ms:.1f}"
    ]  # fmt: skip


def parts_of_a_step(cfg: CfgNode, rounds: int) -> dict[str, float]:
    """Return the median seconds of each part of an iteration."""
    trainer = Trainer(cfg)
    model, optimizer, batches = trainer.model, trainer.optimizer, iter(trainer.data_loader)
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    with EventStorage():
        for round_ in range(rounds + WARM_UP):
            marks = [_now()]
            batch = next(batches)
            marks.append(_now())
            with torch.autocast("cuda", enabled=cfg.SOLVER.AMP.ENABLED):
                loss = sum(model(batch).values())
            marks.append(_now())
            optimizer.zero_grad()
            assert isinstance(loss, Tensor)
            torch.autograd.backward(loss)
            marks.append(_now())
            optimizer.step()
            marks.append(_now())
            for name, begin, end in zip(PARTS, marks, marks[1:], strict=False):
                if round_ >= WARM_UP:
                    times[name].append(end - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def trainer_against_plain(cfg: CfgNode, rounds: int) -> tuple[float, float]:
    """Return the trainer's time for an iteration over the plain loop's, and its hooks' ms."""
    clock = time.perf_counter if cfg.MODEL.DEVICE != "cpu" else time.process_time
    seed_all_rng(0)
    plain = plain_loop(cfg, build_model(cfg))
    seed_all_rng(0)
    ours = TrainerSteps(Trainer(cfg), clock)
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    steps: dict[str, Step] = {"plain": lambda: next(plain), "ours": ours}
    for round_ in range(rounds + WARM_UP):
        for name, step in steps.items():
            seed_all_rng(round_)
            _now()
            begin = clock()
            step()
            _now()
            if round_ >= WARM_UP:
                times[name].append(clock() - begin)
    ratio = min(times["ours"]) / min(times["plain"])
    return ratio, 1e3 * min(ours.hook_times[WARM_UP:])


class TrainerSteps:
    """One iteration of a trainer at each call, hooks and all."""

    def __init__(self, trainer: Trainer, clock: Callable[[], float]) -> None:
        self.trainer = trainer
        self.clock = clock
        self.hook_times: list[float] = []
        self.trainer.storage = EventStorage(0)
        self.trainer.before_train()

    def __call__(self) -> None:
        """Run the next iteration."""
        with self.trainer.storage:
            begin = self.clock()
            self.trainer.before_step()
            ready = self.clock()
            self.trainer.run_step()
            done = self.clock()
            self.trainer.after_step()
            self.hook_times.append(self.clock() - done + ready - begin)
            self.trainer.iter += 1


def plain_loop(cfg: CfgNode, model: nn.Module) -> Iterator[None]:
    """Run an iteration at each `next`, as detectron2's tools/plain_train_net.py does."""
    optimizer = build_optimizer(cfg, model.train())
    scheduler = build_lr_scheduler(cfg, optimizer)
    writers = default_writers(cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER)
    storage = EventStorage(0)
    batches = iter(build_detection_train_loader(cfg))
    while True:
        with storage:
            losses = model(next(batches))
            loss = sum(losses.values())
            assert isinstance(loss, Tensor) and torch.isfinite(loss).all()
            values = {key: value.item() for key, value in comm.reduce_dict(losses).items()}
            storage.put_scalars(total_loss=sum(values.values()), **values)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
            scheduler.step()
            if (storage.iter + 1) % 20 == 0:
                for writer in writers:
                    writer.write()
        yield
        storage.step()


def case_config(file: str, size: int, folder: Path, *, amp: bool, workers: int) -> CfgNode:
    """Return a shipped config at one size, for 2 images on this machine, that learns nothing."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(CfgNode.load_yaml_with_base(str(CONFIGS / file))))
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    if cfg.MODEL.DEVICE == "cpu":
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = CPU_PROPOSALS
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (DATASET,)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (size,), "none"
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE, solver.BASE_LR = 2, 0, 0.0
    solver.CHECKPOINT_PERIOD = solver.MAX_ITER
    solver.AMP.ENABLED = amp
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
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
