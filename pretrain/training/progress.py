"""What a person sees of a run: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import time

from rich import progress as bars
from rich.console import Console

LINE_EVERY_S = 30.0
SHOWN = ("loss", "lr", "images_per_s", "embedding/rank", "embedding/effective_rank", "knn/top1")
logger = logging.getLogger(__name__)


def note(metrics: dict[str, float]) -> str:
    """Return the metrics that are shown, in one line."""
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)


class TrainingProgress:
    """Shows the step, the time left, and the metrics as they are logged."""

    def __init__(self, total_steps: int, step: int, console: Console | None = None) -> None:
        self.total_steps = total_steps
        self.last_line = time.monotonic()
        console = console or Console(stderr=True)
        self.bars = bars.Progress(
            bars.TextColumn("step"),
            bars.MofNCompleteColumn(),
            bars.BarColumn(bar_width=16),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bars.add_task("step", total=total_steps, completed=step, note="")

    def __enter__(self) -> TrainingProgress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def stepped(self, step: int) -> None:
        """A step is over."""
        self.bars.update(self.task, completed=step)

    def logged(self, metrics: dict[str, float]) -> None:
        """Show what has just been logged."""
        self.bars.update(self.task, note=note(metrics))
        now = time.monotonic()
        if self.bars.disable and now - self.last_line > LINE_EVERY_S:
            self.last_line = now
            logger.info("step %d of %d: %s", metrics["step"], self.total_steps, note(metrics))
