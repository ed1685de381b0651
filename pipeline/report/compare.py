"""Two pipelines side by side: configs, origins and numbers that differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report.collect import MADE_FROM
from pipeline.report.results import Results, read_results
from pipeline.report.statistics import SIGNIFICANT, Difference, Spread, difference, paired_p, spread
from pipeline.report.tables import bullets, grid, md
from pipeline.report.text import difference_text, metric_label, p_text, spread_text
from pipeline.stages.files import read_json, sha256_of
from pipeline.stages.stage import differences


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
    results = read_results(path)
    configs, provenance = {}, {}
    for name, run_dir in _run_dirs(folder):
        configs[name] = read_json(run_dir / "config.json")
        provenance[name] = read_json(run_dir / "manifest.json").get("provenance", {})
    return Finished(folder, results, configs, provenance)


def _run_dirs(folder: Path) -> Iterable[tuple[str, Path]]:
    """Yield name and run folder of every stage that the report was made from."""
    made_from = folder / "report" / MADE_FROM
    by_sha256 = {sha256_of(path): path.parent for path in sorted(folder.glob("*/*/manifest.json"))}
    for entry in read_json(made_from) if made_from.is_file() else []:
        if len(entry) == 4 and entry[3] in by_sha256:
            yield entry[0], by_sha256[entry[3]]


def number_changes(a: Results, b: Results) -> list[NumberChange]:
    """Return every metric of the summaries that both or one of the pipelines have."""
    changes = []
    for key in dict.fromkeys((e.backbone, e.task, e.metric) for e in (*a.summary, *b.summary)):
        values_a, values_b = _values(a, *key), _values(b, *key)
        spreads = spread(values_a.values()), spread(values_b.values())
        diff, p = difference(values_b, values_a), paired_p(values_b, values_a)
        changes.append(NumberChange(*key, *spreads, diff, p, identical=values_a == values_b))
    return changes


def _values(results: Results, backbone: str, task: str, metric: str) -> dict[int, float]:
    return {
        row.seed: value
        for row in results.rows
        if (row.backbone, row.task) == (backbone, task)
        and (value := row.metrics.get(metric)) is not None
    }


def config_changes(a: Finished, b: Finished) -> list[str]:
    """Return what differs in the stages' configs; a difference of several stages is told once."""
    lines = [
        f"{side.folder}: the folders of its stages are gone, and their configs with them"
        for side in (a, b)
        if side.results.rows and not side.configs
    ]
    for side, other in ((a, b), (b, a)):
        gone = [name for name in side.configs if name not in other.configs]
        lines += [f"only in {side.folder}: {name}" for name in gone]
    stages: dict[str, list[str]] = {}
    for name in [name for name in a.configs if name in b.configs]:
        for text in differences(a.configs[name], b.configs[name], names=("A", "B")):
            if not text.startswith("inputs"):  # told by the stage that is the input
                stages.setdefault(text, []).append(name)
    return lines + [f"{', '.join(names)}: {text}" for text, names in stages.items()]


def provenance_changes(a: Finished, b: Finished) -> list[str]:
    """Return how commits, versions and machines differ between the two."""
    readers: dict[str, Callable[[dict[str, Any]], str]] = {
        "commit": _commit,
        "host": lambda origin: str(origin.get("host")),
        "packages": lambda origin: ", ".join(
            f"{name} {version}" for name, version in origin.get("packages", {}).items()
        ),
    }
    lines = []
    for what, read in readers.items():
        sides = [sorted(set(map(read, side.provenance.values()))) for side in (a, b)]
        text_a, text_b = ("; ".join(values) or "unknown" for values in sides)
        if text_a != text_b:
            lines.append(f"{what}: A {text_a}, B {text_b}")
    return lines


def _commit(origin: dict[str, Any]) -> str:
    code = origin.get("code", {})
    return f"{code.get('commit')}{' with changes' if code.get('dirty') else ''}"


def compare(folder_a: Path, folder_b: Path) -> str:
    """Return the comparison of two pipelines' folders as Markdown."""
    a, b = read_finished(folder_a), read_finished(folder_b)
    changes = number_changes(a.results, b.results)
    alone = [change for change in changes if change.a is None or change.b is None]
    shared = [change for change in changes if change not in alone]
    changed = [change for change in shared if not change.identical]
    parts = [
        f"# {md(str(folder_a))} (A) and {md(str(folder_b))} (B)",
        _outcome(shared, changed, len(alone)),
        "## What they were made from",
        bullets(config_changes(a, b) or ["no stage's config differs"]),
        "## What they were made with",
        bullets(provenance_changes(a, b) or ["the same"]),
    ]
    for title, listed in (("Numbers that changed", changed), ("Numbers of one alone", alone)):
        headings = ["Backbone", "Task", "Metric", "A", "B", "B − A", "p"]
        rows = [
            [
                *(md(name) for name in (change.backbone, change.task, metric_label(change.metric))),
                spread_text(change.a, 2),
                spread_text(change.b, 2),
                difference_text(change.difference, 2),
                p_text(change.p).removeprefix("p = ").removeprefix("p "),
            ]
            for change in listed
        ]
        parts += [f"## {title}", grid(headings, rows, num_names=3)] if rows else []
    return "\n\n".join(parts) + "\n"


def _outcome(shared: list[NumberChange], changed: list[NumberChange], num_alone: int) -> str:
    if not shared and not num_alone:
        return "Neither has a result yet."
    rest = f" {num_alone} more are of one of them alone." if num_alone else ""
    if not shared:
        return f"No number is in both; {num_alone} are of one of them alone."
    if not changed:
        return f"All {len(shared)} numbers are identical.{rest}"
    significant = sum(change.p is not None and change.p < SIGNIFICANT for change in changed)
    return (
        f"{len(changed)} of {len(shared)} numbers changed, {significant} of them with "
        f"p < {SIGNIFICANT} (two-sided paired t-test over common seeds, not corrected for their "
        f"number).{rest}"
    )
