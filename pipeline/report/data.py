"""The data of a report, its summary by task and backbone, and both as results.json.

A value that is not finite (COCO's AP over no objects is NaN) counts as not measured: it enters no
mean, lowers the n of its cell, and is written as null.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.report.statistics import (
    Difference,
    Spread,
    Verdict,
    difference,
    finite,
    interval,
    leaders,
    paired_p,
    spread,
    verdict,
)

AP_METRICS = ("bbox/AP50", "bbox/AP", "bbox/AP75", "segm/AP50", "segm/AP", "segm/AP75")

Status = Literal["done", "failed", "missing", "running", "queued"]


@dataclass(frozen=True)
class PublishedRow:
    """A line of somebody else's detection table beside a task, in percent.

    `label` names the backbone, its pretraining, and what differs from the task; `differs` and
    `inferred` name keys: those that are not the task's, and those that the source does not say.
    `search` tells whether the learning rate was searched for each backbone, None where nobody says.
    """

    backbone: str
    label: str
    table: str
    data: str
    detector: str
    schedule: str
    protocol: str
    epochs: int | None
    views: int | str | None
    search: bool | None
    inferred: tuple[str, ...]
    differs: tuple[str, ...]
    source: str
    metrics: dict[str, float]
    stds: dict[str, float]


@dataclass(frozen=True)
class PublishedProbe:
    """A line of somebody else's probe table beside a probe; as `PublishedRow`."""

    backbone: str
    label: str
    probe: str
    data: str
    arch: str
    protocol: str
    epochs: int | None
    views: int | str | None
    inferred: tuple[str, ...]
    source: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class TaskInfo:
    """A detection task and its metrics, in the order of the columns.

    `published` are the rows that stand beside it; `rule` says by which rule its AP is
    measured.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    published: tuple[PublishedRow, ...] = ()
    rule: str = ""


@dataclass(frozen=True)
class ResultRow:
    """One fine-tuning: a backbone on a task with a seed, finished or not.

    `dirty` marks a result that cannot be told from clean commits, `doubt` says why.
    """

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
    doubt: str = ""


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
    """Everything a report shows; `backbones` and `tasks` in display order.

    `remarks` say what makes a number mean less than it seems to.
    """

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
    remarks: tuple[str, ...] = ()
    published_probes: tuple[PublishedProbe, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One metric of one backbone on one task; `p` is of the paired t-test against the baseline.

    `interval` is that of the difference, in 95 of 100 cases. `best` is not told apart from the
    highest mean, where another one is.
    """

    metric: str
    values: tuple[tuple[int, float], ...]  # (seed, value), by seed
    spread: Spread | None
    difference: Difference | None
    verdict: Verdict
    best: bool
    p: float | None = None
    interval: tuple[float, float] | None = None


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
        """Whether a finished seed cannot be told from clean commits."""
        return any(row.dirty for row in self.rows if row.status == "done")


@dataclass(frozen=True)
class TaskSummary:
    """One task's table."""

    task: TaskInfo
    seeds: tuple[int, ...]
    backbones: tuple[BackboneSummary, ...]


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
    titles = {
        "By object size": [f"{kind}/AP{size}" for kind in kinds for size in "sml"],
        "By class": [key for kind in kinds for key in measured if key.startswith(f"{kind}/AP-")],
    }
    metrics = {title: [n for n in names if n in measured] for title, names in titles.items()}
    return {
        title: _summarise_task(data, replace(task, metrics=tuple(names)))
        for title, names in metrics.items()
        if names
    }


def _summarise_task(data: ReportData, task: TaskInfo) -> TaskSummary:
    of_task = sorted((row for row in data.rows if row.task == task.name), key=lambda row: row.seed)
    rows = {name: tuple(r for r in of_task if r.backbone == name) for name in data.backbones}
    seeds = tuple(dict.fromkeys(row.seed for row in of_task))
    columns = [_column(rows, metric, data.baseline) for metric in task.metrics]
    lines = []
    for name in data.backbones:
        counts = Counter[str](row.status for row in rows[name])
        counts["missing"] += len(seeds) - len(rows[name])  # planned, and without a row
        by_status = {status: counts[status] for status in get_args(Status) if counts[status]}
        cells = tuple(column[name] for column in columns)
        lines.append(BackboneSummary(name, len(seeds), by_status, cells, rows[name]))
    return TaskSummary(task, seeds, tuple(lines))


def _column(
    rows: Mapping[str, tuple[ResultRow, ...]], metric: str, baseline: str | None
) -> dict[str, Cell]:
    """A metric of every backbone, by backbone."""
    values: dict[str, dict[int, float]] = {name: {} for name in rows}
    for row in (row for entries in rows.values() for row in entries):
        value = finite(row.metrics.get(metric))
        if row.status == "done" and value is not None:
            values[row.backbone][row.seed] = value
    spreads = {name: spread(by_seed.values()) for name, by_seed in values.items()}
    best = leaders(values)
    num_measured = sum(measured is not None for measured in spreads.values())
    base = values[baseline] if baseline is not None else {}
    column = {}
    for name, ours in spreads.items():
        diff = None if name == baseline else difference(values[name], base)
        column[name] = Cell(
            metric=metric,
            values=tuple(values[name].items()),
            spread=ours,
            difference=diff,
            verdict="baseline" if name == baseline else verdict(diff),
            best=name in best and len(best) < num_measured,
            p=None if name == baseline else paired_p(values[name], base),
            interval=interval(diff),
        )
    return column


def check(data: ReportData) -> None:
    """Refuse data that contradicts itself.

    Raises:
        ValueError: every fault found, joined by `; `.
    """
    tasks = [task.name for task in data.tasks]
    unique: dict[str, Iterable[object]] = {
        "backbone": data.backbones,
        "task": tasks,
        "result": [(row.backbone, row.task, row.seed) for row in data.rows],
        "probe result": [(row.backbone, row.probe) for row in data.probes],
    }
    backbones = [row.backbone for row in data.rows] + [row.backbone for row in data.probes]
    backbones += [curve.backbone for curve in (*data.pretraining, *data.finetuning)]
    curve_tasks = [curve.task for curve in data.finetuning if curve.task is not None]
    backbones += [data.baseline] if data.baseline is not None else []
    used: dict[str, tuple[list[str], Sequence[str]]] = {
        "backbone": (backbones, data.backbones),
        "task": ([row.task for row in data.rows] + curve_tasks, tasks),
        "status": ([row.status for row in data.rows], get_args(Status)),
    }
    faults = [
        f"{what} {name!r} given {n} times, wanted once"
        for what, names in unique.items()
        for name, n in Counter(names).items()
        if n > 1
    ]
    faults += [f"task {task.name!r} has no metrics" for task in data.tasks if not task.metrics]
    faults += [
        f"unknown {what} {name!r}; known: {', '.join(known) or 'none'}"
        for what, (names, known) in used.items()
        for name in dict.fromkeys(names)
        if name not in known
    ]
    if faults:
        raise ValueError(f"report data of pipeline {data.pipeline!r}: {'; '.join(faults)}")


# --- results.json -----------------------------------------------------------------------------

Metrics = dict[str, Annotated[float | None, AfterValidator(finite)]]


class Part(BaseModel):
    """A part of results.json; a value that was not measured or is not finite is null."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_serialization_defaults_required=True
    )


class ResultEntry(Part):
    """One finished fine-tuning."""

    backbone: str
    task: str
    seed: int
    metrics: Metrics = Field(description="AP in percent by name, such as bbox/AP50")


class ProbeEntry(Part):
    """One probe of a backbone."""

    backbone: str
    probe: str
    metrics: Metrics


class UnfinishedEntry(Part):
    """A fine-tuning of the plan without a result."""

    backbone: str
    task: str
    seed: int
    status: Status
    reason: str | None
    log: str | None


class PublishedEntry(Part):
    """A published row beside a task: somebody else's numbers."""

    table: str
    backbone: str
    epochs: int | None
    views: int | str | None
    data: str
    detector: str
    schedule: str
    protocol: str
    search: bool | None = Field(
        description="whether the learning rate was searched for each backbone; null: not said"
    )
    inferred: tuple[str, ...] = Field(description="keys that the source does not say")
    differs: tuple[str, ...] = Field(description="keys in which it is not the task's equal")
    source: str
    metrics: Metrics
    stds: Metrics


class TaskEntry(Part):
    """A task and the published rows beside it."""

    name: str
    title: str
    rule: str = Field(description="by which rule its AP is measured")
    published: tuple[PublishedEntry, ...]


class PublishedProbeEntry(Part):
    """A published row beside a probe: somebody else's numbers."""

    probe: str
    backbone: str
    epochs: int | None
    views: int | str | None
    data: str
    arch: str
    protocol: str
    inferred: tuple[str, ...]
    source: str
    metrics: Metrics


class DifferenceEntry(Part):
    """Difference to the baseline."""

    mean: float
    std: float | None
    n: int
    paired: bool


class SummaryEntry(Part):
    """One metric of one backbone on one task over its finished seeds."""

    backbone: str
    task: str
    metric: str
    mean: float | None
    std: float | None = Field(description="sample standard deviation (ddof 1)")
    n: int
    planned: int
    difference: DifferenceEntry | None
    verdict: Verdict
    p: float | None = Field(description="two-sided paired t-test against the baseline")
    interval: tuple[float, float] | None = Field(None, description="95 %, of the difference")


class Results(Part):
    """results.json."""

    pipeline: str
    baseline: str | None
    rows: tuple[ResultEntry, ...]
    probes: tuple[ProbeEntry, ...]
    unfinished: tuple[UnfinishedEntry, ...]
    summary: tuple[SummaryEntry, ...]
    tasks: tuple[TaskEntry, ...] = ()  # what has a default is not in older files
    remarks: tuple[str, ...] = ()
    published_probes: tuple[PublishedProbeEntry, ...] = ()


def results_json(data: ReportData) -> str:
    """Return results.json; NaN is no JSON and becomes null."""
    summary = [
        {
            "backbone": line.backbone,
            "task": task.task.name,
            "planned": line.planned,
            **(vars(cell.spread) if cell.spread else {"mean": None, "std": None, "n": 0}),
            **{
                key: getattr(cell, key)
                for key in ("metric", "difference", "verdict", "p", "interval")
            },
        }
        for task in summarise(data)
        for line in task.backbones
        for cell in line.cells
    ]
    content = Results.model_validate(
        {
            "pipeline": data.pipeline,
            "baseline": data.baseline,
            "rows": [row for row in data.rows if row.status == "done"],
            "probes": data.probes,
            "unfinished": [row for row in data.rows if row.status != "done"],
            "summary": summary,
            "tasks": data.tasks,
            "remarks": data.remarks,
            "published_probes": data.published_probes,
        },
        from_attributes=True,
    ).model_dump(mode="json")
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def schema_json() -> str:
    """Return the JSON schema of results.json."""
    schema = Results.model_json_schema(mode="serialization")
    return json.dumps(schema, indent=1) + "\n"
