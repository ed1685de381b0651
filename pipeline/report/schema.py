"""The shape of `results.json`, as models that write it and as a JSON schema for who reads it."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field

from pipeline.report.data import (
    BackboneSummary,
    ReportData,
    Status,
    TaskSummary,
    Verdict,
    finite,
    summarise,
)

Metrics = dict[str, float | None]


class Part(BaseModel):
    """A part of results.json; a value that was not measured or is not finite is null."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class Results(Part):
    """results.json."""

    pipeline: str
    baseline: str | None
    rows: tuple[ResultEntry, ...]
    probes: tuple[ProbeEntry, ...]
    unfinished: tuple[UnfinishedEntry, ...]
    summary: tuple[SummaryEntry, ...]


def results(data: ReportData) -> Results:
    """Return the finished rows and probes, and beside them the unfinished and the summary."""
    return Results(
        pipeline=data.pipeline,
        baseline=data.baseline,
        rows=tuple(
            ResultEntry(
                backbone=row.backbone, task=row.task, seed=row.seed, metrics=_finite(row.metrics)
            )
            for row in data.rows
            if row.status == "done"
        ),
        probes=tuple(
            ProbeEntry(backbone=row.backbone, probe=row.probe, metrics=_finite(row.metrics))
            for row in data.probes
        ),
        unfinished=tuple(
            UnfinishedEntry(
                backbone=row.backbone,
                task=row.task,
                seed=row.seed,
                status=row.status,
                reason=row.reason,
                log=row.log,
            )
            for row in data.rows
            if row.status != "done"
        ),
        summary=tuple(
            entry
            for summary in summarise(data)
            for line in summary.backbones
            for entry in _summary_entries(summary, line)
        ),
    )


def results_json(data: ReportData) -> str:
    """Return results.json; NaN is no JSON and becomes null."""
    content = results(data).model_dump(mode="json")
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def schema_json() -> str:
    """Return the JSON schema of results.json."""
    return json.dumps(Results.model_json_schema(), indent=1) + "\n"


def _summary_entries(summary: TaskSummary, line: BackboneSummary) -> list[SummaryEntry]:
    entries = []
    for cell in line.cells:
        diff = cell.difference
        entries.append(
            SummaryEntry(
                backbone=line.backbone,
                task=summary.task.name,
                metric=cell.metric,
                mean=cell.spread.mean if cell.spread else None,
                std=cell.spread.std if cell.spread else None,
                n=cell.spread.n if cell.spread else 0,
                planned=line.planned,
                difference=None
                if diff is None
                else DifferenceEntry(mean=diff.mean, std=diff.std, n=diff.n, paired=diff.paired),
                verdict=cell.verdict,
                p=cell.p,
            )
        )
    return entries


def _finite(metrics: dict[str, float]) -> Metrics:
    return {name: finite(value) for name, value in metrics.items()}
