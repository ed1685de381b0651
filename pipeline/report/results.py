"""The form of results.json, and reading one, of this pipeline or of anybody.

What has a default is not in older files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.report.statistics import Verdict, finite
from pipeline.stages.files import one_line

Status = Literal["done", "failed", "missing", "running", "queued"]

Metrics = dict[str, Annotated[float | None, AfterValidator(finite)]]

Weights = Annotated[
    dict[str, str] | None,
    Field(description="sha256 by file of what it started from; none: random; null: not known"),
]
Identity = Annotated[
    dict[str, Any] | None,
    Field(description="settings and digests of the data by which it is known; null: not known"),
]


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


class OriginEntry(Part):
    """All that tells a result from others of its names: a row's by task and seed, or a probe's."""

    backbone: str
    task: str | None = None
    probe: str | None = None
    seed: int | None = None
    signature: str | None = Field(default=None, description="of all that it depends on")
    weights: Weights = None
    doubt: str = Field(default="", description="why it cannot be told from clean commits")
    source: str = Field(default="", description="mark of the run that it is from, of several")


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
    published_labels: tuple[str, ...] = Field(default=(), description="their names in the tables")
    identity: Identity = None
    apart: tuple[str, ...] = Field(default=(), description="backbones that are compared with none")


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
    verdict: Verdict = Field(
        description="yes: higher than the baseline and told apart from it (95 % interval); worse: "
        "lower and told apart; no: not told apart; n/a: no interval; baseline: it is the baseline"
    )
    p: float | None = Field(description="two-sided paired t-test against the baseline")
    interval: tuple[float, float] | None = Field(None, description="95 %, of the difference")


class SourceEntry(Part):
    """One of several runs in a report."""

    mark: str
    path: str
    pipeline: str
    sha256: str


class Results(Part):
    """results.json."""

    pipeline: str
    baseline: str | None
    rows: tuple[ResultEntry, ...]
    probes: tuple[ProbeEntry, ...]
    unfinished: tuple[UnfinishedEntry, ...]
    summary: tuple[SummaryEntry, ...]
    tasks: tuple[TaskEntry, ...] = ()
    remarks: tuple[str, ...] = ()
    published_probes: tuple[PublishedProbeEntry, ...] = ()
    published_probe_labels: tuple[str, ...] = ()
    origins: tuple[OriginEntry, ...] = ()
    probe_identities: dict[str, Identity] = {}
    made_with: dict[str, tuple[str, ...]] = Field(
        default={}, description="commits and versions of packages of the results"
    )
    sources: tuple[SourceEntry, ...] = ()
    command: str = Field("", description="what makes these results again")


def read_results(path: Path) -> Results:
    """Return what a results.json holds.

    Texts are made one line each; NaN and infinity count as not measured.

    Raises:
        ValueError: it is no such file, in one line.
    """
    try:
        content = json.loads(
            path.read_bytes(),
            parse_constant=lambda _: None,
            parse_float=lambda text: finite(float(text)),
        )
        return Results.model_validate(_one_lined(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = one_line(".".join(map(str, first["loc"]))) or "whole file"
        raise ValueError(f"{path}: not results of this version: {where}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise ValueError(f"{path}: not JSON ({why})") from None


def _one_lined(value: Any) -> Any:
    """Return the same with every text on one line, of what a terminal would not obey."""
    if isinstance(value, dict):
        return {one_line(key): _one_lined(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_one_lined(entry) for entry in value]
    return one_line(value) if isinstance(value, str) else value
