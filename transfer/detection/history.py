"""The evaluations of a run, in its `metrics.jsonl`: each with its iteration, the best, the last."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

MAIN_METRIC = "bbox/AP"
AVERAGES = ("AP", "AP50", "AP75")


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
    best = max(evaluations(path), key=lambda held: held[MAIN_METRIC])
    kept = {
        f"best/{key}": value
        for key, value in best.items()
        if key.partition("/")[0] in ("bbox", "segm") and key.partition("/")[2] in AVERAGES
    }
    return {**metrics, "iteration": iteration, **kept, "best/iteration": best["step"]}


def evaluations(path: Path) -> list[dict[str, float]]:
    """Return the lines of a metrics file that are evaluations, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if MAIN_METRIC in entry]
