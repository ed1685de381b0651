"""The report of a run: `metrics.jsonl`, TensorBoard events, and a bar or lines for a person."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from rich import progress as bars
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from pretrain.config.pretrain import PretrainConfig
from pretrain.runtime.bars import FittingProgress, Pairs
from pretrain.runtime.files import whole_file

METRICS = "metrics.jsonl"
ON_THE_WAY = frozenset({"max_steps", "images_per_s"})
LINE_EVERY_S = 30.0
PROBED = "knn/top1"  # is among what a probe measures
SHOWN = ("loss", "lr", "images_per_s", "embedding/rank", "embedding/effective_rank", PROBED)
logger = logging.getLogger(__name__)


def _entries(path: Path) -> list[dict[str, float]]:
    """Return the whole lines of a log; one that a killed run left unfinished is not among them."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def final_metrics(path: Path) -> dict[str, float]:
    """Return what a finished run logged at its last step, without what matters only on the way."""
    merged: dict[str, float] = {}
    entries = _entries(path)
    for entry in entries:
        if entry["step"] == entries[-1]["step"]:
            merged |= entry
    return {key: value for key, value in merged.items() if key not in ON_THE_WAY}


def note(metrics: dict[str, float]) -> str:
    """Return the metrics that are shown, in one line."""
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)


class TrainingProgress(FittingProgress):
    """Shows the step, the time left, and the metrics as they are logged.

    What a probe measures gets a line of its own, on a terminal too.
    """

    def __init__(self, total_steps: int, step: int, console: Console | None = None) -> None:
        self.total_steps = total_steps
        self.first_step, self.begun = step, time.monotonic()
        self.last_line = self.begun
        console = console or Console(stderr=True)
        bar, left = bars.BarColumn(bar_width=16), bars.TimeRemainingColumn()
        note = Pairs()
        super().__init__(
            bars.TextColumn("step"), bars.MofNCompleteColumn(), bar, left, note,
            dispensable=(bar, note, left), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.step_bar = self.add_task("step", total=total_steps, completed=step, note="")

    def stepped(self, step: int) -> None:
        """A step is over."""
        self.update(self.step_bar, completed=step)

    def logged(self, metrics: dict[str, float]) -> None:
        """Show what has just been logged."""
        self.update(self.step_bar, note=note(metrics))
        now = time.monotonic()
        due = self.disable and now - self.last_line > LINE_EVERY_S
        if due or PROBED in metrics:
            self.last_line = now if due else self.last_line  # scores have lines of their own
            line = (
                f"step {metrics['step']:.0f} of {self.total_steps}{self._time_left(metrics, now)}"
            )
            line = f"{line}: {note(metrics)}"
            if self.disable:
                logger.info("%s", line)
            else:
                self.console.print(line, markup=False, highlight=False)

    def _time_left(self, metrics: dict[str, float], now: float) -> str:
        """Return in words how long the rest takes at the pace of this process so far."""
        done, rest = metrics["step"] - self.first_step, self.total_steps - metrics["step"]
        if done <= 0 or rest <= 0:
            return ""
        return f", {timedelta(seconds=round((now - self.begun) * rest / done))} left"


class Report(ExitStack):
    """The log and the progress bar of the main process; other ranks only help to compute.

    Of the log of a run that is resumed, entries after the resumed step are dropped first.
    """

    def __init__(
        self, config: PretrainConfig, output_dir: Path, step: int, total_steps: int, *, main: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.total_steps = total_steps
        self.main = main
        if main:
            path = output_dir / METRICS
            kept = [json.dumps(e) + "\n" for e in _entries(path) if e["step"] <= step]
            with whole_file(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
            self.log = self.enter_context(path.open("a", encoding="utf-8"))
            board = SummaryWriter(str(output_dir / "tensorboard"), purge_step=step + 1)
            self.board = self.enter_context(board)
            self.bar = self.enter_context(TrainingProgress(total_steps, step))
        self.started, self.num_steps = time.perf_counter(), 0

    def stepped(self, step: int, metrics: Callable[[], dict[str, float]]) -> None:
        """Count a step, and log `metrics()` where the config says so; every rank has to call it."""
        self.num_steps += 1
        if self.main:
            self.bar.stepped(step)
        if not self.config.logs(step) and step != self.total_steps:
            return
        rate = self.num_steps * self.config.batch_size / (time.perf_counter() - self.started)
        self.write({**metrics(), "max_steps": self.total_steps, "images_per_s": rate})
        self.started, self.num_steps = time.perf_counter(), 0

    def write(self, metrics: dict[str, float]) -> None:
        """Log and show `metrics`, which have a `step`."""
        if not self.main:
            return
        self.log.write(json.dumps(metrics) + "\n")
        self.log.flush()
        for name, value in metrics.items():
            if name not in ("step", "max_steps"):
                self.board.add_scalar(name, value, int(metrics["step"]))
        self.bar.logged(metrics)
