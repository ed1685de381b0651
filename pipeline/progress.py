"""What a person sees while stages run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich import progress as bars
from rich.console import Console

from pipeline.files import last_json_line
from pipeline.stage import Stage
from pipeline.store import LOG, State

LINE_EVERY_S = 15.0


class Progress:
    """Follows stages through their `metrics.jsonl`: `step`, `max_steps`, and what they log."""

    def __init__(self, console: Console, num_stages: int, num_done: int) -> None:
        self.console = console
        self.num_stages = num_stages
        self.position = num_done
        self.last_line = 0.0
        self.task: bars.TaskID | None = None
        self.bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def started(self, stage: Stage) -> None:
        """A stage begins."""
        self.position += 1
        self.last_line = time.monotonic()
        label = f"[{self.position}/{self.num_stages}] {stage.name}"
        if self.console.is_terminal:
            self.task = self.bars.add_task(label.replace("[", r"\["), total=None, note="")
        else:
            self.console.print(f"{label} ...", markup=False, highlight=False, soft_wrap=True)

    def update(self, stage: Stage, metrics: Path) -> None:
        """Show the last line that the stage logged."""
        entry = last_json_line(metrics)
        if entry is None:
            return
        step, total = entry.get("step", 0), entry.get("max_steps")
        note = "  ".join(
            f"{key} {entry[key]:.4g}"
            for key in ("loss", "total_loss", "lr", "images_per_s", "bbox/AP")
            if isinstance(entry.get(key), int | float)
        )
        if self.console.is_terminal and self.task is not None:
            self.bars.update(self.task, completed=step, total=total, note=note)
        elif time.monotonic() - self.last_line > LINE_EVERY_S:
            self.last_line = time.monotonic()
            text = f"    {stage.name}: step {step:.0f} of {total}  {note}"
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def ended(self, stage: Stage, state: State, seconds: float) -> None:
        """A stage is over."""
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None
        text = f"[{self.position}/{self.num_stages}] {stage.name}: {state.status}, {seconds:.0f} s"
        if state.reason:
            text += f": {state.reason} (log: {stage.run_dir / LOG})"
        style = "red" if state.status == "failed" else None
        self.console.print(text, markup=False, highlight=False, style=style, soft_wrap=True)

    def skipped(self, stage: Stage, reason: str) -> None:
        """A stage cannot run."""
        self.position += 1
        text = f"[{self.position}/{self.num_stages}] {stage.name}: not run, {reason}"
        self.console.print(text, markup=False, highlight=False, style="red", soft_wrap=True)
