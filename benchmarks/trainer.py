"""Cost of the trainer: milliseconds of an iteration beyond detectron2's plain loop.

A detector's own steps vary by more than the loops differ. So both loops run with a model that does
next to nothing, over the same small images, and their difference is taken in milliseconds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import default_writers
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from transfer.detection.trainer import Trainer

LOSSES = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")
WRITE_PERIOD = 20  # iterations; detectron2's for both loops
Loop = Generator[None, None, None]


class NoDetector(nn.Module):
    """Returns the losses of a Mask R-CNN, all made of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: object) -> dict[str, Tensor]:
        """Return one loss of each name, whatever the images are."""
        return {name: self.weight * 0.1 for name in LOSSES}


class NoDetectorTrainer(Trainer):
    """The trainer with everything but a detector."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Return the model that does next to nothing."""
        return NoDetector().to(cfg.MODEL.DEVICE)


@dataclass(frozen=True)
class Cost:
    """Milliseconds of an iteration of the plain loop, and of the trainer's beyond them."""

    plain: float
    differences: tuple[float, ...]

    @property
    def added(self) -> float:
        """Return the median difference."""
        return statistics.median(self.differences)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Return the first and the third quartile of the differences."""
        first, _, third = statistics.quantiles(self.differences, n=4)
        return first, third

    @property
    def standard_error(self) -> float:
        """Return that of the median, from the quartiles as for a normal distribution."""
        first, third = self.quartiles
        return math.sqrt(math.pi / 2 / len(self.differences)) * (third - first) / 1.349

    def numbers(self) -> dict[str, float]:
        """Return them for a table."""
        return {
            "plain ms": self.plain,
            "added ms": self.added,
            "first quartile ms": self.quartiles[0],
            "third quartile ms": self.quartiles[1],
            "standard error ms": self.standard_error,
        }

    def least_step(self, share: float) -> float:
        """Return the milliseconds of a step of which the added and two errors are this share."""
        return max(0.0, self.added + 2 * self.standard_error) / share


def trainer_cost(cfg: CfgNode, blocks: int) -> Cost:
    """Return what the trainer adds, as differences of neighbouring blocks of the two loops.

    A block has as many iterations as lie between two writes of the metrics. The first ones do not
    count; the loops take turns in going first. On a CPU processor time is compared, in which other
    processes' work is not.
    """
    clock = clock_of(cfg)
    loops: dict[str, Loop] = {
        "plain": plain_loop(cfg, NoDetectorTrainer.build_model(cfg)),
        "ours": trainer_loop(NoDetectorTrainer(cfg)),
    }
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for number in range(blocks + 1):
        for name in sorted(loops, reverse=number % 2 == 0):
            begin = clock()
            for _ in range(WRITE_PERIOD):
                next(loops[name])
            times[name].append(1e3 * (clock() - begin) / WRITE_PERIOD)
    for loop in loops.values():
        loop.close()
    pairs = list(zip(times["ours"], times["plain"], strict=True))[1:]
    return Cost(
        statistics.median(plain for _, plain in pairs), tuple(ours - plain for ours, plain in pairs)
    )


def clock_of(cfg: CfgNode) -> Callable[[], float]:
    """Return what reads seconds: of this process on a CPU, of everything begun on a GPU."""
    if cfg.MODEL.DEVICE == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def trainer_loop(trainer: Trainer) -> Loop:
    """Run an iteration of the trainer at each `next`, hooks and all."""
    trainer.storage = EventStorage(0)
    trainer.before_train()
    try:
        while True:
            with trainer.storage:
                trainer.before_step()
                trainer.run_step()
                trainer.after_step()
            yield
            trainer.iter += 1
    finally:
        with trainer.storage:
            trainer.after_train()  # gives the signals back


def plain_loop(cfg: CfgNode, model: nn.Module) -> Loop:
    """Run an iteration at each `next`, as detectron2's tools/plain_train_net.py does."""
    optimizer = build_optimizer(cfg, model.train())
    scheduler = build_lr_scheduler(cfg, optimizer)
    writers = default_writers(cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER)
    storage = EventStorage(0)
    batches = iter(build_detection_train_loader(cfg))
    try:
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
                if (storage.iter + 1) % WRITE_PERIOD == 0:
                    for writer in writers:
                        writer.write()
            yield
            storage.step()
    finally:
        for writer in writers:
            writer.close()
