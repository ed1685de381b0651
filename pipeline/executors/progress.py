"""Progress of stages at work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

from rich import progress as bars
from rich.console import Console

from pipeline.stages.files import last_json_line, read_json
from pipeline.stages.run_folder import LOG, MANIFEST, State
from pipeline.stages.stage import Stage
from pipeline.stages.takeover import TAKEN_FROM

LINE_EVERY_S = 15.0


class Progress:
    """Follows stages through their `metrics.jsonl`: `step`, `max_steps`, and what they log."""

    def __init__(self, console: Console, num_stages: int, num_done: int) -> None:
        self.console = console
        self.num_stages = num_stages
        self.num_over = num_done
        self.tasks: dict[str, bars.TaskID] = {}
        self.last_lines: dict[str, float] = {}
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

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def started(self, stage: Stage) -> None:
        """A stage begins."""
        self.last_lines[stage.name] = time.monotonic()
        if self.console.is_terminal:
            self.tasks[stage.name] = self.bars.add_task(stage.name, total=None, note="")
        else:
            self._print(f"{stage.name} ...")

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
        note = str(entry.get("doing", note))  # beside training, such as an evaluation
        if stage.name in self.tasks:
            self.bars.update(self.tasks[stage.name], completed=step, total=total, note=note)
        elif time.monotonic() - self.last_lines[stage.name] > LINE_EVERY_S:
            self.last_lines[stage.name] = time.monotonic()
            self._print(f"    {stage.name}: step {step:.0f} of {total}  {note}")

    def ended(self, stage: Stage, state: State, seconds: float) -> None:
        """A stage is over."""
        if stage.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(stage.name))
        text = f"{self._count()} {stage.name}: {state.status}, {seconds:.0f} s"
        manifest = stage.run_dir / MANIFEST
        if state.status == "done" and (folder := read_json(manifest).get(TAKEN_FROM)):
            text += f": taken over from {folder}, made from the same bytes"
        if state.reason:
            text += f": {state.reason} (log: {stage.run_dir / LOG})"
        self._print(text, style="red" if state.status == "failed" else None)

    def skipped(self, stage: Stage, reason: str) -> None:
        """A stage cannot run."""
        self._print(f"{self._count()} {stage.name}: not run, {reason}", style="red")

    def _count(self) -> str:
        self.num_over += 1
        return f"[{self.num_over}/{self.num_stages}]"

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, markup=False, highlight=False, style=style, soft_wrap=True)
