"""Hooks of the training loop: a clean stop, precise BatchNorm, metrics and AP as JSON lines."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn

METRICS = "metrics.jsonl"
MAIN_METRIC = "bbox/AP"
AVERAGES = ("AP", "AP50", "AP75")
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: saved, to be started again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
ASK_PERIOD = 10  # iterations; to ask all processes takes milliseconds
TELL_EVERY_S = 10.0
logger = logging.getLogger(__name__)


class MetricsWriter(EventWriter):  # type: ignore[misc]
    """Appends the latest scalars to `metrics.jsonl`, one JSON object a line with `step`."""

    def __init__(self, path: Path, max_steps: int) -> None:
        self.path = path
        self.max_steps = max_steps

    def write(self) -> None:
        """Append what was logged at the current iteration."""
        storage = get_event_storage()
        step = min(storage.iter + 1, self.max_steps)  # the evaluation comes after the last step
        entry: dict[str, float] = {"step": step, "max_steps": self.max_steps}
        for name, (value, iteration) in storage.latest().items():
            evaluated = name.startswith(("bbox/", "segm/"))  # has a line of its own
            if iteration == storage.iter and math.isfinite(value) and not evaluated:
                entry[name] = value
        if len(entry) == 2:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


@dataclass
class LongPass:
    """Batches of a pass beside training, which says every ten seconds how far it is.

    In the log, and within a training as a line of `path` that has no metric: `doing` is what goes
    on, "evaluating 1,200/4,952". `num_each` batches or images, of all processes, come at a time.
    """

    batches: Any
    what: str
    total: int
    path: Path
    max_steps: int
    num_each: int = 1

    def __post_init__(self) -> None:
        try:
            self.step: int | None = min(get_event_storage().iter + 1, self.max_steps)
        except AssertionError:  # an evaluation without training
            self.step = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches."""
        last = time.monotonic()
        for number, batch in enumerate(self.batches, start=1):
            yield batch
            if time.monotonic() - last > TELL_EVERY_S and comm.is_main_process():
                last = time.monotonic()
                done = min(number * self.num_each, self.total)
                self._tell(f"{self.what} {done:,}/{self.total:,}")

    def _tell(self, doing: str) -> None:
        logger.info("%s", doing)
        if self.step is not None:
            entry = {"step": self.step, "max_steps": self.max_steps, "doing": doing}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


class StopOnSignal(HookBase):  # type: ignore[misc]
    """Saves and leaves with code 75 after the iteration in which a signal asked to stop.

    Of several processes all leave after the same iteration, whichever was asked: the next tenth one
    or the last.
    """

    def __init__(self) -> None:
        self.received = False
        self.before: dict[int, Any] = {}

    def before_train(self) -> None:
        """Take over the signals."""
        for number in SIGNALS:
            self.before[number] = signal.signal(number, self._receive)

    def after_step(self) -> None:
        """Save and leave, if asked to."""
        iteration = self.trainer.iter
        last = iteration + 1 == self.trainer.max_iter
        if comm.get_world_size() > 1 and (iteration + 1) % ASK_PERIOD and not last:
            return
        if any(comm.all_gather(self.received)):
            self.trainer.is_complete = False
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            comm.synchronize()  # who leaves first has the others stopped
            raise SystemExit(EXIT_INTERRUPTED)

    def after_train(self) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = True


def restarted_precise_bn(
    period: int, model: nn.Module, data_loader: Iterable[Any], num_iter: int, path: Path
) -> HookBase:
    """Return detectron2's precise BatchNorm, each time over the same images from their beginning.

    Every `period` iterations and after the last one `num_iter` batches are averaged; `path` gets
    how far it is.
    """

    def after_step(trainer: TrainerBase) -> None:
        done = trainer.iter + 1
        if done == trainer.max_iter or (period > 0 and done % period == 0):
            what = "precise BatchNorm"
            batches = LongPass(data_loader, what, num_iter, path, trainer.max_iter)
            hooks.PreciseBN(0, model, batches, num_iter).update_stats()

    return hooks.CallbackHook(after_step=after_step)


def record_evaluation(
    path: Path, metrics: Mapping[str, float], iteration: int, max_steps: int
) -> dict[str, float]:
    """Append one evaluation, and return the metrics of a run that ends here.

    These are the last evaluation's, its `iteration`, and `best/..` with `best/iteration`: the
    averages of the evaluation with the highest box AP, the first of equals.
    """
    entry = {key: value for key, value in metrics.items() if math.isfinite(value)}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": iteration, "max_steps": max_steps, **entry}) + "\n")
    best = max(evaluations(path), key=lambda evaluation: evaluation[MAIN_METRIC])
    averages = {
        f"best/{key}": value
        for key, value in best.items()
        if key.partition("/")[0] in ("bbox", "segm") and key.partition("/")[2] in AVERAGES
    }
    return {**metrics, "iteration": iteration, **averages, "best/iteration": best["step"]}


def evaluations(path: Path) -> list[dict[str, float]]:
    """Return the lines of a metrics file that are evaluations, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if MAIN_METRIC in entry]
