"""The runs of a report of several: read, checked, and refused where their tasks differ.

A run is a pipeline's folder or anybody's results.json, which is not trusted: what cannot be a
measurement is refused, and so is one that is given twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.plan.plan import STAGES
from pipeline.report.collect import MADE_FROM
from pipeline.report.data import AP_METRICS, Source
from pipeline.report.results import OriginEntry, Results, TaskEntry, read_results
from pipeline.stages.files import one_line, printable, read_json, sha256_of
from pipeline.stages.run_folder import MANIFEST
from pipeline.stages.stage import differences

RESULTS = Path("report", "results.json")
PERCENT = ("bbox/", "segm/", "keypoints/")
LARGEST = 1e12  # no measurement is larger, and sums of larger ones overflow
FORMULA = ("=", "+", "-", "@")
MAX_DIFFERENCES, MAX_SHOWN = 6, 240
REMEDY = "leave one out, or give it another name in its config and make that report anew"

Identity = dict[str, Any] | None
Key = tuple[str, str | None, str | None, int | None]  # backbone, task, probe, seed


@dataclass(frozen=True)
class Run:
    """A run and what its results.json holds."""

    source: Source
    results: Results
    is_outdated: bool = False  # its run folders hold results that its report was not made from

    @property
    def mark(self) -> str:
        """A, B, ..."""
        return self.source.mark

    @property
    def where(self) -> str:
        """`A (runs/demo)`."""
        return f"{self.mark} ({self.source.path})"

    @cached_property
    def origins(self) -> dict[Key, OriginEntry]:
        """What tells each result from others of its names."""
        return {(o.backbone, o.task, o.probe, o.seed): o for o in self.results.origins}

    @cached_property
    def tasks(self) -> dict[str, TaskEntry]:
        """The tasks by name; the first versions wrote none."""
        entries = {task.name: task for task in self.results.tasks}
        named = [row.task for row in self.results.rows]
        for name in [*named, *(row.task for row in self.results.unfinished)]:
            entries.setdefault(name, TaskEntry(name=name, title=name, rule="", published=()))
        return entries

    def metrics(self, task: str) -> tuple[str, ...]:
        """The metrics of a task, in the order of their columns."""
        named = dict.fromkeys(e.metric for e in self.results.summary if e.task == task)
        return tuple(named) or AP_METRICS[:3]

    @cached_property
    def probes(self) -> dict[str, Identity]:
        """The identities of probes by name."""
        unknown: dict[str, Identity] = dict.fromkeys(row.probe for row in self.results.probes)
        return unknown | self.results.probe_identities


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Return the runs of these folders and files, marked A, B, ... in their order.

    Raises:
        ValueError: one cannot be read, or is given twice; a line each.
    """
    runs: list[Run] = []
    faults, places, numbers = [], list[Path](), list[Any]()
    for number, path in enumerate(paths):
        mark = chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")
        try:
            file = results_file(path)
            results = read_results(file)
            sha256 = sha256_of(file)
        except (ValueError, OSError) as error:
            faults.append(str(error))
            continue
        same = [
            run.where
            for run, place, known in zip(runs, places, numbers, strict=True)
            if place == file.resolve() or run.source.sha256 == sha256 or known == _numbers(results)
        ]
        shown = printable(path)
        if same:
            faults.append(f"{shown}: is the same as {same[0]}; wanted each run once")
            continue
        name = results.pipeline or "without a name"
        runs.append(Run(Source(mark, shown, name, sha256), results, _is_outdated(file)))
        places.append(file.resolve())
        numbers.append(_numbers(results))
        faults += [f"{shown}: {fault}" for fault in _faults(results)][:1]
    if faults:
        raise ValueError("\n".join(map(one_line, faults)))
    return runs


def _numbers(results: Results) -> Any:
    """Return what a run's numbers are, whoever made its report, where and by which command.

    Of a run that does not say by what its results are known, all but these tells it from others.
    """
    content = results.model_dump()
    of_rows = [origin for origin in results.origins if origin.probe is None]
    if of_rows and all(origin.signature for origin in of_rows):
        origins = [(each.signature, each.weights) for each in results.origins]
        tasks = [(task.name, task.identity) for task in results.tasks]
        keys = ("rows", "probes", "probe_identities")
        return origins, tasks, [content[key] for key in keys]
    return {key: content[key] for key in content if key not in ("command", "remarks")}


def results_file(path: Path) -> Path:
    """Return the results.json of a pipeline's folder, of its report's, or the file itself.

    Raises:
        ValueError: there is none.
    """
    places = [path] if path.is_file() else [path / RESULTS, path / RESULTS.name]
    for place in places:
        if place.is_file():
            return place
    raise ValueError(
        f"{printable(places[0])}: no such file; wanted the folder of a pipeline with a report, "
        "such as runs/demo; make one with run_pipeline.py report --config-file F"
    )


def _is_outdated(file: Path) -> bool:
    """Return whether a stage of the plan that was last run has a result that a report has not."""
    with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        root = file.resolve().parents[1]
        made_from = {str(entry[-1]) for entry in read_json(file.with_name(MADE_FROM))}
        manifests = (root / name / MANIFEST for name in read_json(root / STAGES).values())
        return any(path.is_file() and sha256_of(path) not in made_from for path in manifests)
    return False


def _faults(results: Results) -> Iterator[str]:
    """Yield what cannot be: names that are none or twice, numbers that measure nothing."""
    if results.sources:
        given = ", ".join(each.path for each in results.sources)
        yield f"is a report of several runs already; give these themselves: {given}"
    rows: list[tuple[object, ...]] = [(r.backbone, r.task, r.seed) for r in results.rows]
    rows += [(row.backbone, row.task, row.seed) for row in results.unfinished]
    rows += [(row.backbone, row.probe) for row in results.probes]
    rows += [(task.name,) for task in results.tasks]
    for names, n in Counter(rows).items():
        shown = ", ".join(map(str, names))
        if n > 1:
            yield f"{shown}: given twice"
        if "" in names:
            yield f"{shown}: a name is empty"
    texts = [name for names in rows for name in names if isinstance(name, str)]
    texts += [name for row in results.rows for name in row.metrics]
    texts += [task.rule for task in results.tasks]
    for text in dict.fromkeys(texts):
        if text.startswith(FORMULA):
            yield f"{text}: wanted a text that is no formula of a spreadsheet"
    numbers = [(row.backbone, row.metrics) for row in results.rows]
    numbers += [(row.backbone, row.metrics) for row in results.probes]
    for backbone, metrics in numbers:
        for name, value in metrics.items():
            is_ap = name.startswith(PERCENT) and "/AP" in name
            least, most = (0.0, 100.0) if is_ap else (-LARGEST, LARGEST)
            if value is not None and not least <= value <= most:
                bounds = f"{least:g} to {most:g}{' percent' if is_ap else ''}"
                yield f"{backbone}: {name} is {value:g}, wanted {bounds}, or null if not measured"


def differing(runs: Sequence[Run]) -> list[str]:
    """Return a line for every task and probe that is not the same in two runs that have it."""
    lines = []
    for name in dict.fromkeys(name for run in runs for name in run.tasks):
        these = [run for run in runs if name in run.tasks]
        for run in these[1:]:
            a, b = these[0].metrics(name), run.metrics(name)
            if a != b:
                pair = {"metrics": ", ".join(a)}, {"metrics": ", ".join(b)}
                lines.append(_line(f"task {name}", these[0], run, *pair))
        lines += _differing(f"task {name}", [(run, run.tasks[name].identity) for run in these])
    for name in dict.fromkeys(name for run in runs for name in run.probes):
        known = [(run, run.probes[name]) for run in runs if name in run.probes]
        lines += _differing(f"probe {name}", known)
    return lines


def _differing(what: str, of_runs: Sequence[tuple[Run, Identity]]) -> Iterable[str]:
    """Yield how the known identities differ from the first one."""
    known = [(run, identity) for run, identity in of_runs if identity is not None]
    for run, identity in known[1:]:
        if identity != known[0][1]:
            yield _line(what, known[0][0], run, known[0][1], identity)


def _line(what: str, a: Run, b: Run, in_a: dict[str, Any], in_b: dict[str, Any]) -> str:
    texts = differences(_by_number(in_a), _by_number(in_b), names=(a.mark, b.mark))
    shown = [text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…" for text in texts]
    more = f"; and {len(shown) - MAX_DIFFERENCES} more" if len(shown) > MAX_DIFFERENCES else ""
    listed = "; ".join(shown[:MAX_DIFFERENCES])
    return one_line(f"{what} is not the same in {a.where} and {b.where}: {listed}{more}; {REMEDY}")


def _by_number(value: Any) -> Any:
    """Return the same with lists of mappings as mappings, so that differences in them are told."""
    if isinstance(value, dict):
        return {key: _by_number(entry) for key, entry in value.items()}
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return {str(number): _by_number(entry) for number, entry in enumerate(value)}
    return value
