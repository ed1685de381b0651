"""What a report is made of, and the statistics drawn from it: plain data, pure functions.

A value that is not finite (COCO's AP over no objects is NaN) counts as not measured: it enters no
mean, lowers the n of its cell, and is written as null.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.report.statistics import paired_p

Status = Literal["done", "failed", "missing", "running", "queued"]
Verdict = Literal["yes", "no", "worse", "baseline", "n/a"]


@dataclass(frozen=True)
class TaskInfo:
    """A detection task and its metrics, in the order of the columns.

    `reference` names the published rows it can be compared with (`pipeline.report.published`).
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    reference: str | None = None


@dataclass(frozen=True)
class ResultRow:
    """One fine-tuning: a backbone on a task with a seed, finished or not."""

    backbone: str
    task: str
    seed: int
    status: Status
    metrics: dict[str, float]
    reason: str | None
    log: str | None
    pictures: tuple[Path, ...]
    ground_truth: tuple[Path, ...]
    wall_time_s: float | None
    run_dir: str
    dirty: bool
    signature: str
    num_gpus: int = 0
    commit: str | None = None
    command: str = ""
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeRow:
    """What a probe (k-NN, linear, ...) measured on a backbone."""

    backbone: str
    probe: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """A run's log: points with `step` and whatever was measured there."""

    label: str
    backbone: str
    task: str | None
    seed: int | None
    points: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows; `backbones` and `tasks` in display order."""

    pipeline: str
    backbones: tuple[str, ...]
    tasks: tuple[TaskInfo, ...]
    baseline: str | None
    rows: tuple[ResultRow, ...]
    probes: tuple[ProbeRow, ...]
    pretraining: tuple[Curve, ...]
    finetuning: tuple[Curve, ...]
    provenance: dict[str, Any]
    command: str


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (ddof 1; None for one value) of n values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Difference to the baseline.

    Paired: mean and sample standard deviation of the n differences over common seeds. Unpaired
    (no common seeds): difference of the means, sqrt(std_a^2 + std_b^2), n the smaller n.
    """

    mean: float
    std: float | None
    n: int
    paired: bool


@dataclass(frozen=True)
class Cell:
    """One metric of one backbone on one task; `p` is of the paired t-test against the baseline."""

    metric: str
    values: tuple[tuple[int, float], ...]  # (seed, value), by seed
    spread: Spread | None
    difference: Difference | None
    verdict: Verdict
    best: bool
    p: float | None = None


@dataclass(frozen=True)
class BackboneSummary:
    """One line of a task's table; `planned` counts every seed any backbone has on the task."""

    backbone: str
    planned: int
    counts: Mapping[str, int]
    cells: tuple[Cell, ...]
    rows: tuple[ResultRow, ...]

    @property
    def done(self) -> int:
        """Number of finished seeds."""
        return self.counts.get("done", 0)

    @property
    def dirty(self) -> bool:
        """Whether a finished seed came from modified code."""
        return any(row.dirty for row in self.rows if row.status == "done")


@dataclass(frozen=True)
class TaskSummary:
    """One task's table."""

    task: TaskInfo
    seeds: tuple[int, ...]
    backbones: tuple[BackboneSummary, ...]


def finite(value: float | None) -> float | None:
    """`value` as a float, or None where it is absent, NaN or infinite."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and sample standard deviation, None of no values."""
    numbers = list(values)
    if not numbers:
        return None
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), std, len(numbers))


def difference(ours: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Difference of two {seed: value}, paired over the common seeds where there are any."""
    common = sorted(ours.keys() & base.keys())
    paired = spread(ours[seed] - base[seed] for seed in common)
    if paired is not None:
        return Difference(paired.mean, paired.std, paired.n, paired=True)
    a, b = spread(ours.values()), spread(base.values())
    if a is None or b is None:
        return None
    std = None if a.std is None or b.std is None else math.hypot(a.std, b.std)
    return Difference(a.mean - b.mean, std, min(a.n, b.n), paired=False)


def verdict(diff: Difference | None, ours: Spread | None, base: Spread | None) -> Verdict:
    """Whether a difference stands out of the seed spread.

    yes: the mean difference is above its own standard deviation and above both backbones'
    standard deviations; worse: the same downwards; n/a: fewer than two seeds somewhere.
    """
    if diff is None or ours is None or base is None:
        return "n/a"
    if diff.std is None or ours.std is None or base.std is None:
        return "n/a"
    bar = max(diff.std, ours.std, base.std)
    if diff.mean > bar:
        return "yes"
    return "worse" if diff.mean < -bar else "no"


def main_metrics(task: TaskInfo) -> tuple[str, ...]:
    """The metrics a verdict is given on: the plain APs, else the first metric."""
    plain = tuple(metric for metric in task.metrics if metric.split("/")[-1] == "AP")
    return plain or task.metrics[:1]


def summarise(data: ReportData) -> tuple[TaskSummary, ...]:
    """Every task's table.

    Raises:
        ValueError: the data contradicts itself; all faults in one message.
    """
    check(data)
    return tuple(_summarise_task(data, task) for task in data.tasks)


def further_summaries(data: ReportData, task: TaskInfo) -> dict[str, TaskSummary]:
    """A task's other tables by title: AP by object size, and by class, where they were measured."""
    measured = sorted({key for row in data.rows if row.task == task.name for key in row.metrics})
    kinds = dict.fromkeys(metric.partition("/")[0] for metric in task.metrics)
    found = {}
    for title, names in (
        ("By object size", [f"{kind}/AP{size}" for kind in kinds for size in "sml"]),
        ("By class", [key for kind in kinds for key in measured if key.startswith(f"{kind}/AP-")]),
    ):
        metrics = tuple(name for name in names if name in measured)
        if metrics:
            found[title] = _summarise_task(data, replace(task, metrics=metrics))
    return found


def _summarise_task(data: ReportData, task: TaskInfo) -> TaskSummary:
    rows = {
        name: tuple(
            sorted(
                (row for row in data.rows if row.task == task.name and row.backbone == name),
                key=lambda row: row.seed,
            )
        )
        for name in data.backbones
    }
    seeds = tuple(sorted({row.seed for found in rows.values() for row in found}))
    cells = {metric: _column(rows, metric, data.baseline) for metric in task.metrics}
    lines = tuple(
        BackboneSummary(
            backbone=name,
            planned=len(seeds),
            counts=_counts(rows[name], len(seeds)),
            cells=tuple(cells[metric][name] for metric in task.metrics),
            rows=rows[name],
        )
        for name in data.backbones
    )
    return TaskSummary(task, seeds, lines)


def _counts(rows: tuple[ResultRow, ...], planned: int) -> dict[str, int]:
    """Rows by status; a planned seed without a row is missing."""
    counts = Counter[str](row.status for row in rows)
    counts["missing"] += planned - len(rows)
    return {status: counts[status] for status in get_args(Status) if counts[status]}


def _column(
    rows: Mapping[str, tuple[ResultRow, ...]], metric: str, baseline: str | None
) -> dict[str, Cell]:
    """A metric of every backbone, by backbone."""
    values = {name: _values(found, metric) for name, found in rows.items()}
    spreads = {name: spread(found.values()) for name, found in values.items()}
    means = [found.mean for found in spreads.values() if found is not None]
    top = max(means) if len(means) > 1 else None
    base = values[baseline] if baseline is not None else {}
    base_spread = spreads[baseline] if baseline is not None else None
    column = {}
    for name, ours in spreads.items():
        diff = None if name == baseline else difference(values[name], base)
        column[name] = Cell(
            metric=metric,
            values=tuple(values[name].items()),
            spread=ours,
            difference=diff,
            verdict="baseline" if name == baseline else verdict(diff, ours, base_spread),
            best=ours is not None and ours.mean == top,
            p=None if name == baseline else paired_p(values[name], base),
        )
    return column


def _values(rows: tuple[ResultRow, ...], metric: str) -> dict[int, float]:
    """{seed: value} of the finished rows that have the metric."""
    found = {row.seed: finite(row.metrics.get(metric)) for row in rows if row.status == "done"}
    return {seed: value for seed, value in found.items() if value is not None}


def check(data: ReportData) -> None:
    """Refuse data that contradicts itself.

    Raises:
        ValueError: every fault found, joined by `; `.
    """
    tasks = tuple(task.name for task in data.tasks)
    faults = [
        *_twice("backbone", data.backbones),
        *_twice("task", tasks),
        *_twice("result", [(row.backbone, row.task, row.seed) for row in data.rows]),
        *_twice("probe result", [(row.backbone, row.probe) for row in data.probes]),
        *(f"task {task.name!r} has no metrics" for task in data.tasks if not task.metrics),
    ]
    names = [row.backbone for row in data.rows] + [row.backbone for row in data.probes]
    names += [curve.backbone for curve in (*data.pretraining, *data.finetuning)]
    names += [data.baseline] if data.baseline is not None else []
    faults += _unknown("backbone", names, data.backbones)
    used = [row.task for row in data.rows]
    used += [curve.task for curve in data.finetuning if curve.task is not None]
    faults += _unknown("task", used, tasks)
    faults += _unknown("status", [row.status for row in data.rows], get_args(Status))
    if faults:
        raise ValueError(f"report data of pipeline {data.pipeline!r}: {'; '.join(faults)}")


def _twice(what: str, names: Iterable[object]) -> list[str]:
    counts = Counter(names)
    return [f"{what} {name!r} given {n} times, wanted once" for name, n in counts.items() if n > 1]


def _unknown(what: str, names: Iterable[str], known: tuple[str, ...]) -> list[str]:
    known_text = ", ".join(known) or "none"
    return [
        f"unknown {what} {name!r}; known: {known_text}"
        for name in dict.fromkeys(names)
        if name not in known
    ]
