"""The report of a run: `metrics.jsonl`, TensorBoard events, and a bar or lines for a person."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from pretrain.config.pretrain import PretrainConfig
from pretrain.runtime.files import whole_file
from pretrain.training.progress import TrainingProgress

METRICS = "metrics.jsonl"
ON_THE_WAY = frozenset({"max_steps", "images_per_s"})


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


class MetricsLog:
    """Appends entries; those after the resumed step are dropped first."""

    def __init__(self, output_dir: Path, resumed_step: int) -> None:
        path = output_dir / METRICS
        kept = [entry for entry in _entries(path) if entry["step"] <= resumed_step]
        with whole_file(path) as temporary:
            temporary.write_text("".join(json.dumps(e) + "\n" for e in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(output_dir / "tensorboard"), purge_step=resumed_step + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.board.close()

    def write(self, entry: dict[str, float]) -> None:
        """Append one entry, which has a `step`, and flush it."""
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        step = int(entry["step"])
        for name, value in entry.items():
            if name not in ("step", "max_steps"):
                self.board.add_scalar(name, value, step)


class Report(ExitStack):
    """The log and the progress bar of the main process; other ranks only help to compute."""

    def __init__(
        self, config: PretrainConfig, output_dir: Path, step: int, total_steps: int, *, main: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.total_steps = total_steps
        self.log = self.enter_context(MetricsLog(output_dir, step)) if main else None
        self.bar = self.enter_context(TrainingProgress(total_steps, step)) if main else None
        self.started, self.num_steps = time.perf_counter(), 0

    def stepped(self, step: int, metrics: Callable[[], dict[str, float]]) -> None:
        """Count a step, and log `metrics()` where the config says so; every rank has to call it."""
        self.num_steps += 1
        if self.bar is not None:
            self.bar.stepped(step)
        if step % self.config.log_every and step != self.total_steps:
            return
        rate = self.num_steps * self.config.batch_size / (time.perf_counter() - self.started)
        self.write({**metrics(), "max_steps": self.total_steps, "images_per_s": rate})
        self.started, self.num_steps = time.perf_counter(), 0

    def write(self, metrics: dict[str, float]) -> None:
        """Log and show `metrics`."""
        if self.log is not None and self.bar is not None:
            self.log.write(metrics)
            self.bar.logged(metrics)
