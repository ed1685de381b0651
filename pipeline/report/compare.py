"""Two pipelines side by side: what changed in what they were made from, and whether numbers did."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.report.collect import MADE_FROM
from pipeline.report.data import Difference, Spread, difference, spread
from pipeline.report.schema import Results
from pipeline.report.statistics import paired_p
from pipeline.report.text import difference_text, md, metric_label, p_text, spread_text
from pipeline.stages.files import read_json, sha256_of
from pipeline.stages.signature import differences


@dataclass(frozen=True)
class Finished:
    """A finished pipeline: its results, and config and provenance of every stage by name."""

    folder: Path
    results: Results
    configs: dict[str, dict[str, Any]]
    provenance: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class NumberChange:
    """One metric in both pipelines; `difference` is B minus A, paired over common seeds."""

    backbone: str
    task: str
    metric: str
    a: Spread | None
    b: Spread | None
    difference: Difference | None
    p: float | None
    identical: bool


def read_finished(folder: Path) -> Finished:
    """Read a pipeline's folder (`runs/NAME`, with its report made).

    Raises:
        ValueError: there is no report, or its results cannot be read.
    """
    path = folder / "report" / "results.json"
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; wanted the folder of a pipeline with a report, such as "
            "runs/demo; make one with run_pipeline.py report --config-file F"
        )
    try:
        results = Results.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "whole file"
        raise ValueError(f"{path}: not results of this version: {where}: {first['msg']}") from None
    configs, provenance = {}, {}
    for name, run_dir in _run_dirs(folder):
        configs[name] = read_json(run_dir / "config.json")
        provenance[name] = read_json(run_dir / "manifest.json").get("provenance", {})
    return Finished(folder, results, configs, provenance)


def _run_dirs(folder: Path) -> Iterable[tuple[str, Path]]:
    """Yield name and run folder of every stage that the report was made from."""
    made_from = folder / "report" / MADE_FROM
    for entry in read_json(made_from) if made_from.is_file() else []:
        if len(entry) == 4 and entry[3] is not None:
            kind, _, slug = entry[0].partition("/")
            for manifest in sorted((folder / kind).glob(f"{slug}-{'[0-9a-f]' * 16}/manifest.json")):
                if sha256_of(manifest) == entry[3]:
                    yield entry[0], manifest.parent


def number_changes(a: Results, b: Results) -> list[NumberChange]:
    """Return every metric of the summaries that both or one of the pipelines have."""
    keys = dict.fromkeys((e.backbone, e.task, e.metric) for e in (*a.summary, *b.summary))
    return [_number_change(a, b, *key) for key in keys]


def _number_change(a: Results, b: Results, backbone: str, task: str, metric: str) -> NumberChange:
    values_a, values_b = (_values(results, backbone, task, metric) for results in (a, b))
    return NumberChange(
        backbone,
        task,
        metric,
        spread(values_a.values()),
        spread(values_b.values()),
        difference(values_b, values_a),
        paired_p(values_b, values_a),
        identical=values_a == values_b,
    )


def _values(results: Results, backbone: str, task: str, metric: str) -> dict[int, float]:
    found = {
        row.seed: row.metrics.get(metric)
        for row in results.rows
        if (row.backbone, row.task) == (backbone, task)
    }
    return {seed: value for seed, value in found.items() if value is not None}


def config_changes(a: Finished, b: Finished) -> list[str]:
    """Return what differs in the stages' configs; a difference of several stages is told once."""
    lines = [
        f"{found.folder}: the folders of its stages are gone, and their configs with them"
        for found in (a, b)
        if found.results.rows and not found.configs
    ]
    lines += [
        f"only in {found.folder}: {name}"
        for found, other in ((a, b), (b, a))
        for name in found.configs
        if name not in other.configs
    ]
    stages: dict[str, list[str]] = {}
    for name, config in a.configs.items():
        for text in (
            differences(config, b.configs[name], names=("A", "B")) if name in b.configs else []
        ):
            if not text.startswith("inputs"):  # told by the stage that is the input
                stages.setdefault(text, []).append(name)
    return lines + [f"{', '.join(names)}: {text}" for text, names in stages.items()]


def provenance_changes(a: Finished, b: Finished) -> list[str]:
    """Return how commits, versions and machines differ between the two."""
    lines = []
    for what, read in READERS.items():
        texts = [
            "; ".join(sorted({read(made) for made in found.provenance.values()})) or "unknown"
            for found in (a, b)
        ]
        if texts[0] != texts[1]:
            lines.append(f"{what}: A {texts[0]}, B {texts[1]}")
    return lines


def _commit(made: dict[str, Any]) -> str:
    code = made.get("code", {})
    return f"{code.get('commit')}{' with changes' if code.get('dirty') else ''}"


def _packages(made: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in made.get("packages", {}).items())


READERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "commit": _commit,
    "host": lambda made: str(made.get("host")),
    "packages": _packages,
}


def compare(folder_a: Path, folder_b: Path) -> str:
    """Return the comparison of two pipelines' folders as Markdown."""
    a, b = read_finished(folder_a), read_finished(folder_b)
    changes = number_changes(a.results, b.results)
    changed = [change for change in changes if not change.identical]
    parts = [
        f"# {md(str(folder_a))} (A) and {md(str(folder_b))} (B)",
        _verdict(changes, changed),
        _list("What they were made from", config_changes(a, b), "no stage's config differs"),
        _list("What they were made with", provenance_changes(a, b), "the same"),
    ]
    if changed:
        head = ["Backbone", "Task", "Metric", "A", "B", "B − A", "p"]
        rows = [head, ["---"] * 3 + ["---:"] * 4, *map(_row, changed)]
        parts += ["## Numbers that changed", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    return "\n\n".join(parts) + "\n"


def _verdict(changes: list[NumberChange], changed: list[NumberChange]) -> str:
    if not changes:
        return "Neither has a result yet."
    if not changed:
        return f"All {len(changes)} numbers are identical."
    significant = sum(change.p is not None and change.p < 0.05 for change in changed)
    return (
        f"{len(changed)} of {len(changes)} numbers changed, {significant} of them with p < 0.05 "
        "(two-sided paired t-test over common seeds, not corrected for their number)."
    )


def _list(title: str, lines: list[str], nothing: str) -> str:
    return "\n".join([f"## {title}\n", *(f"- {md(line)}" for line in lines or [nothing])])


def _row(change: NumberChange) -> list[str]:
    return [
        md(change.backbone),
        md(change.task),
        md(metric_label(change.metric)),
        spread_text(change.a, 2),
        spread_text(change.b, 2),
        difference_text(change.difference, 2),
        p_text(change.p).removeprefix("p = ").removeprefix("p "),
    ]
