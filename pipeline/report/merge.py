"""Several runs in one report, each backbone marked with the run that it is from.

Backbones of one name count as one where they started from the same bytes and no number contradicts
another; all others stay apart. Of a run that does not say by what its tasks are known, as older
versions wrote none, numbers are shown and compared with none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipeline.report.data import (
    ProbeRow,
    PublishedProbe,
    PublishedRow,
    ReportData,
    ResultRow,
    TaskInfo,
)
from pipeline.report.results import OriginEntry
from pipeline.report.sources import Identity, Run, differing
from pipeline.stages.provenance import code_state

UNKNOWN = OriginEntry(backbone="")
Files = tuple[tuple[str, str], ...]  # (name, sha256); none of random weights


@dataclass
class Backbone:
    """A backbone of a run, or of several: its rows by task and seed, its probes, what it is.

    `weights` holds by kind of stage what results started from, None where that is not known.
    """

    name: str
    marks: list[str]
    rows: dict[tuple[str, int], ResultRow] = field(default_factory=dict)
    probes: dict[str, ProbeRow] = field(default_factory=dict)
    weights: dict[str, set[Files | None]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`w-mse (A)`, or `w-mse (A, B)` where the runs have the same."""
        return f"{self.name} ({', '.join(self.marks)})"

    @property
    def whose(self) -> str:
        """`A`, or `A and B`."""
        return " and ".join(self.marks)


def merge(runs: Sequence[Run], command: str = "") -> ReportData:
    """Return the report of several runs.

    Raises:
        ValueError: tasks or probes of one name differ; a line each.
    """
    if faults := differing(runs):
        raise ValueError("\n".join(faults))
    backbones, remarks = _united(runs)
    labels = {(mark, each.name): each.label for each in backbones for mark in each.marks}
    names = dict.fromkeys(name for run in runs for name in run.tasks)
    tasks = tuple(_task(runs, name, backbones) for name in names)
    known_first = sorted(runs, key=lambda run: any(not t.identity for t in run.tasks.values()))
    rows = [replace(row, backbone=each.label) for each in backbones for row in each.rows.values()]
    done = {row.backbone for row in rows if row.status == "done"}
    baselines = [labels.get((run.mark, str(run.results.baseline))) for run in known_first]
    baselines.sort(key=lambda name: name not in done)
    made_with = {
        what: tuple(dict.fromkeys(v for run in runs for v in run.results.made_with.get(what, ())))
        for what in dict.fromkeys(what for run in runs for what in run.results.made_with)
    }
    probes = [
        replace(row, backbone=each.label) for each in backbones for row in each.probes.values()
    ]
    return ReportData(
        pipeline=", ".join(dict.fromkeys(run.source.pipeline for run in runs)),
        backbones=tuple(each.label for each in backbones),
        tasks=tasks,
        baseline=next(filter(None, baselines), None),
        rows=tuple(rows),
        probes=tuple(probes),
        pretraining=(),
        finetuning=(),
        provenance={
            "report_made_from": code_state(),
            "sha256 of results.json": {run.mark: run.source.sha256 for run in runs},
        },
        command=command,
        remarks=(
            *remarks,
            *_version_remarks(runs),
            *(f"{run.mark}: {text}" for run in runs for text in run.results.remarks),
        ),
        published_probes=_published_probes(runs),
        probe_identities={
            name: next((run.probes[name] for run in runs if run.probes.get(name)), None)
            for name in dict.fromkeys(name for run in runs for name in run.probes)
        },
        made_with=made_with,
        sources=tuple(run.source for run in runs),
    )


# --- backbones --------------------------------------------------------------------------------


def _united(runs: Sequence[Run]) -> tuple[list[Backbone], list[str]]:
    """Return the backbones, those that are the same as one, and why others of one name are not."""
    backbones: list[Backbone] = []
    remarks: list[str] = []
    for run in runs:
        for each in _backbones(run):
            reasons = []
            for other in (other for other in backbones if other.name == each.name):
                if (why := _why_apart(other, each)) is None:
                    _unite(other, each)
                    break
                both = f"{each.name} of {other.whose} and {each.name} of {each.whose}"
                reasons.append(f"{both} stay apart: {why}")
            else:
                backbones.append(each)
                remarks += reasons
    return backbones, remarks


def _backbones(run: Run) -> list[Backbone]:
    """Return the backbones of one run, in the order of its tables."""
    results = run.results
    names = [entry.backbone for entry in results.summary]
    names += [entry.backbone for entry in results.rows]
    names += [entry.backbone for entry in results.unfinished]
    names += [entry.backbone for entry in results.probes]
    by_name = {name: Backbone(name, [run.mark]) for name in dict.fromkeys(names)}
    for row in results.rows:
        origin = run.origins.get((row.backbone, row.task, None, row.seed), UNKNOWN)
        made = ResultRow(
            row.backbone, row.task, row.seed, "done",
            {name: value for name, value in row.metrics.items() if value is not None},
            None, None, (), (), None, run.source.path, bool(origin.doubt), origin.signature or "",
            doubt=origin.doubt, weights=origin.weights, source=run.mark,
        )  # fmt: skip
        by_name[row.backbone].rows[row.task, row.seed] = made
        files = _files(origin, run.tasks[row.task].identity)
        by_name[row.backbone].weights.setdefault("finetune", set()).add(files)
    for entry in results.unfinished:
        made = ResultRow(
            entry.backbone, entry.task, entry.seed, entry.status, {}, entry.reason, entry.log,
            (), (), None, run.source.path, False, "", source=run.mark,
        )  # fmt: skip
        by_name[entry.backbone].rows[entry.task, entry.seed] = made
    for probe in results.probes:
        origin = run.origins.get((probe.backbone, None, probe.probe, None), UNKNOWN)
        values = {name: value for name, value in probe.metrics.items() if value is not None}
        line = ProbeRow(probe.backbone, probe.probe, values, origin.weights, run.mark)
        by_name[probe.backbone].probes[probe.probe] = line
        files = _files(origin, run.probes[probe.probe])
        by_name[probe.backbone].weights.setdefault("probe", set()).add(files)
    return list(by_name.values())


def _files(origin: OriginEntry, identity: Identity) -> Files | None:
    """Return what a result started from; None where that, or what was measured, is not known."""
    known = origin.weights is not None and identity is not None
    return tuple(sorted((origin.weights or {}).items())) if known else None


def _why_apart(a: Backbone, b: Backbone) -> str | None:
    """Return why two backbones of one name are not one, or None if they are."""
    kinds = a.weights.keys() & b.weights.keys()
    if not kinds:
        return "no result of both says that they are the same"
    for kind in kinds:
        files_a, files_b = a.weights[kind], b.weights[kind]
        if None in files_a | files_b:
            return "it is not known from what files their results started"
        if len(files_a | files_b) > 1:
            shown = (
                "; ".join(", ".join(f"{n} {sha[:10]}" for n, sha in each or ()) or "random weights"
                          for each in sorted(files, key=str))
                for files in (files_a, files_b)
            )  # fmt: skip
            return "they started from other files: {}, and {}".format(*shown)
    for key in a.rows.keys() & b.rows.keys():
        one, other = a.rows[key], b.rows[key]
        if one.status == other.status == "done" and one.metrics != other.metrics:
            return f"the same fine-tuning has other numbers ({key[0]}, seed {key[1]})"
    for name in a.probes.keys() & b.probes.keys():
        if a.probes[name].metrics != b.probes[name].metrics:
            return f"the same probe has other numbers ({name})"
    return None


def _unite(backbone: Backbone, other: Backbone) -> None:
    """Add what another run has of a backbone; what both have counts once, for both."""
    backbone.marks += other.marks
    for key, row in other.rows.items():
        kept = backbone.rows.get(key)
        if kept is None or (kept.status != "done" and row.status == "done"):
            backbone.rows[key] = row
        elif row.status == "done":
            doubt = kept.doubt or row.doubt
            source = f"{kept.source}, {row.source}"
            backbone.rows[key] = replace(kept, source=source, doubt=doubt, dirty=bool(doubt))
    for name, probe in other.probes.items():
        known = backbone.probes.get(name)
        source = probe.source if known is None else f"{known.source}, {probe.source}"
        backbone.probes[name] = replace(known or probe, source=source)
    for kind, files in other.weights.items():
        backbone.weights.setdefault(kind, set()).update(files)


# --- tasks and what stands beside them --------------------------------------------------------


def _task(runs: Sequence[Run], name: str, backbones: Sequence[Backbone]) -> TaskInfo:
    """Return a task, as the first run that knows it has it, with everybody's published rows.

    Where several runs have it, those that do not say by what it is known are compared with none,
    nor with each other; the first of them is compared with itself where no run says it.
    """
    these = [run for run in runs if name in run.tasks]
    known = [run for run in these if run.tasks[name].identity is not None] or these[:1]
    first, marks = known[0].tasks[name], {run.mark for run in known}
    published: dict[str, PublishedRow] = {}
    for entry in (run.tasks[name] for run in these):
        labels = [*entry.published_labels, *(row.backbone for row in entry.published)]
        for label, row in zip(labels, entry.published, strict=False):
            line = PublishedRow(label=label, **row.model_dump())
            published.setdefault(repr(line), _measured(line))
    has_row = [each for each in backbones if any(task == name for task, _ in each.rows)]
    return TaskInfo(
        name,
        first.title or name,
        known[0].metrics(name),
        tuple(published.values()),
        first.rule,
        first.identity,
        tuple(each.label for each in has_row if not marks & {*each.marks}),
    )


def _measured(row: PublishedRow) -> PublishedRow:
    """Return a published row without what it has no number for."""
    metrics, stds = (
        {name: value for name, value in values.items() if value is not None}
        for values in (row.metrics, row.stds)
    )
    return replace(row, metrics=metrics, stds=stds)


def _published_probes(runs: Sequence[Run]) -> tuple[PublishedProbe, ...]:
    rows: dict[str, PublishedProbe] = {}
    for results in (run.results for run in runs):
        labels = [*results.published_probe_labels, *(r.backbone for r in results.published_probes)]
        for label, entry in zip(labels, results.published_probes, strict=False):
            row = PublishedProbe(label=label, **entry.model_dump())
            values = {name: value for name, value in row.metrics.items() if value is not None}
            rows.setdefault(repr(row), replace(row, metrics=values))
    return tuple(rows.values())


def _version_remarks(runs: Sequence[Run]) -> list[str]:
    """Return which reports are outdated, and in what commits and packages the runs differ."""
    lines = [
        f"{run.mark}: its run folders hold results that its report has not; make that anew"
        for run in runs
        if run.is_outdated
    ]
    silent = [run.mark for run in runs if not run.results.made_with]
    told = [run for run in runs if run.results.made_with]
    for what in dict.fromkeys(what for run in told for what in run.results.made_with):
        versions = {run.mark: run.results.made_with.get(what, ("unknown",)) for run in told}
        if len({tuple(sorted(each)) for each in versions.values()}) > 1:
            listed = "; ".join(f"{mark} {', '.join(each)}" for mark, each in versions.items())
            lines.append(f"the runs differ in {what}: {listed}")
    if silent:
        lines.append(
            f"{', '.join(silent)}: of an older version, without what tells tasks and backbones "
            "from others of their name, and of which commits results are; made anew it has that"
        )
    return lines
