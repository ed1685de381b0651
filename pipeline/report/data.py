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
from typing import Any, get_args

from pipeline.report.results import Results, Status
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
    measured, `identity` is all that tells it from other tasks, None where that is not known.
    `apart` names backbones of which nobody knows whether their task is the same: they are shown,
    and compared with none.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    published: tuple[PublishedRow, ...] = ()
    rule: str = ""
    identity: dict[str, Any] | None = None
    apart: tuple[str, ...] = ()

    @property
    def published_labels(self) -> tuple[str, ...]:
        """Names of the published rows in tables."""
        return tuple(row.label for row in self.published)

    @property
    def num_test_images(self) -> int | None:
        """Return how many images it is measured on, None where its identity does not say that."""
        try:
            (test_set,) = (self.identity or {})["data"]["TEST"]
            count = test_set["images"]["num_files"]
        except (KeyError, TypeError, ValueError):  # it may be of somebody's file
            return None
        return count if type(count) is int and count > 0 else None


@dataclass(frozen=True)
class ResultRow:
    """One fine-tuning: a backbone on a task with a seed, finished or not.

    `dirty` marks a result that cannot be told from clean commits, `doubt` says why. `weights` are
    sha256 by name of the files that it started from, none of random ones, None where that is not
    known. `source` is the mark of the run that it is from, in a report of several.
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
    weights: dict[str, str] | None = None
    source: str = ""


@dataclass(frozen=True)
class ProbeRow:
    """What a probe (k-NN, linear, ...) measured on a backbone; more as in `ResultRow`."""

    backbone: str
    probe: str
    metrics: dict[str, float]
    weights: dict[str, str] | None = None
    source: str = ""


@dataclass(frozen=True)
class Curve:
    """A run's log: points with `step` and whatever was measured there."""

    label: str
    backbone: str
    task: str | None
    seed: int | None
    points: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Source:
    """One of several runs in a report, by its mark: where its results.json lies, and its sha256."""

    mark: str
    path: str
    pipeline: str
    sha256: str

    @property
    def text(self) -> str:
        """`A is runs/demo (pipeline demo)`."""
        return f"{self.mark} is {self.path} (pipeline {self.pipeline})"


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows; `backbones` and `tasks` in display order.

    `remarks` say what makes a number mean less than it seems to. `probe_identities` are all that
    tells probes from others of their name, `made_with` the versions that results were made with;
    `sources` the runs, where there are several.
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
    probe_identities: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    made_with: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()


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
    """One line of a task's table; `planned` counts every seed any backbone has on the task.

    Of several runs it counts the seeds of the backbone: nobody planned the others' for it.
    """

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
    columns = [_column(rows, metric, data.baseline, task.apart) for metric in task.metrics]
    lines = []
    for name in data.backbones:
        counts = Counter[str](row.status for row in rows[name])
        planned = len(rows[name]) if data.sources else len(seeds)
        counts["missing"] += planned - len(rows[name])  # planned, and without a row
        by_status = {status: counts[status] for status in get_args(Status) if counts[status]}
        cells = tuple(column[name] for column in columns)
        lines.append(BackboneSummary(name, planned, by_status, cells, rows[name]))
    return TaskSummary(task, seeds, tuple(lines))


def _column(
    rows: Mapping[str, tuple[ResultRow, ...]],
    metric: str,
    baseline: str | None,
    apart: Sequence[str],
) -> dict[str, Cell]:
    """A metric of every backbone, by backbone."""
    values: dict[str, dict[int, float]] = {name: {} for name in rows}
    for row in (row for entries in rows.values() for row in entries):
        value = finite(row.metrics.get(metric))
        if row.status == "done" and value is not None:
            values[row.backbone][row.seed] = value
    spreads = {name: spread(by_seed.values()) for name, by_seed in values.items()}
    compared = {name: by_seed for name, by_seed in values.items() if name not in apart}
    best = leaders(compared)
    num_measured = sum(bool(by_seed) for by_seed in compared.values())
    base = compared.get(baseline, {}) if baseline is not None else {}
    column = {}
    for name, ours in spreads.items():
        diff = None if name == baseline else difference(compared.get(name, {}), base)
        column[name] = Cell(
            metric=metric,
            values=tuple(values[name].items()),
            spread=ours,
            difference=diff,
            verdict="baseline" if name == baseline else verdict(diff),
            best=name in best and len(best) < num_measured,
            p=None if name == baseline else paired_p(compared.get(name, {}), base),
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
    done = [row for row in data.rows if row.status == "done"]
    content = Results.model_validate(
        {
            "pipeline": data.pipeline,
            "baseline": data.baseline,
            "rows": done,
            "probes": data.probes,
            "unfinished": [row for row in data.rows if row.status != "done"],
            "summary": summary,
            "tasks": data.tasks,
            "remarks": data.remarks,
            "published_probes": data.published_probes,
            "published_probe_labels": [row.label for row in data.published_probes],
            "origins": [*done, *data.probes],
            "probe_identities": data.probe_identities,
            "made_with": data.made_with,
            "sources": data.sources,
            "command": data.command,
        },
        from_attributes=True,
    ).model_dump(mode="json")
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def schema_json() -> str:
    """Return the JSON schema of results.json."""
    schema = Results.model_json_schema(mode="serialization")
    return json.dumps(schema, indent=1) + "\n"
