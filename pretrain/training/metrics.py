"""What a run logs: `metrics.jsonl` and TensorBoard events."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

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
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(json.dumps(e) + "\n" for e in kept), encoding="utf-8")
        temporary.replace(path)
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
