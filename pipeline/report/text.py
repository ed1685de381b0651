"""Numbers, sentences and provenance of a report as text, the same for every format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pipeline.report.data import (
    BackboneSummary,
    Cell,
    ReportData,
    ResultRow,
    TaskInfo,
    TaskSummary,
    main_metrics,
    summarise,
)
from pipeline.report.remarks import unclean_remarks
from pipeline.report.results import Status
from pipeline.report.statistics import Difference, Spread, Verdict, finite, leaders
from pipeline.stages.files import one_line
from pipeline.stages.provenance import MODIFIED
from pipeline.stages.run_folder import is_kept_back

DASH = "–"
MARK = "‡"
SEARCHED = "§"
LATEX_SPECIAL = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "†": r"\dag{}", MARK: r"\ddag{}", SEARCHED: r"\S{}",
    "±": r"$\pm$", "−": "$-$", "<": r"\textless{}",
})  # fmt: skip
MAX_REASON = 400
KINDS = {"bbox": "Box", "segm": "Mask", "keypoints": "Keypoint"}
STATUS_TEXT = {"missing": "not run", "running": "still running"}  # others as they are
VERDICTS: dict[Verdict, str] = {"worse": "no, lower", "no": "not told apart"}  # others as are
BOLD = "bold: not told apart from the highest mean, where another one is; nothing with one seed"
AGAINST: dict[Verdict, str] = {
    "yes": "higher than",
    "worse": "lower than",
    "no": "not told apart from",
    "n/a": "no interval of the difference from",
}
EVIDENCE = (
    "one pretraining of each pretrained backbone, and another one may differ by more than the "
    "seeds do"
)


def metric_label(metric: str) -> str:
    """`bbox/AP50` as a reader's `Box AP50`; other names as they are."""
    kind, _, name = metric.partition("/")
    return f"{KINDS[kind]} {name}" if name and kind in KINDS else metric


def number(value: float | None, decimals: int) -> str:
    """A fixed-point number with a true minus sign, a dash for None."""
    if value is None:
        return DASH
    return f"{value:z.{decimals}f}".replace("-", "−")


def spread_text(spread: Spread | None, decimals: int) -> str:
    """`23.9 ± 0.4`; a dash for what was not measured."""
    if spread is None:
        return DASH
    return f"{number(spread.mean, decimals)} ± {number(spread.std, decimals)}"


def difference_text(diff: Difference | None, decimals: int) -> str:
    """`+7.6 ± 0.5`, followed by * where it is not paired."""
    if diff is None:
        return DASH
    mean = number(diff.mean, decimals)
    sign = "" if mean.startswith("−") or float(mean) == 0 else "+"
    return f"{sign}{mean} ± {number(diff.std, decimals)}{'' if diff.paired else '*'}"


def p_text(p: float | None) -> str:
    """`p = 0.03`; empty where there is no test."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def task_decimals(summary: TaskSummary) -> int:
    """1, or 2 where one decimal would print a real spread as 0.0."""
    cells = [cell for line in summary.backbones for cell in line.cells]
    stds = [part.std for cell in cells for part in (cell.spread, cell.difference) if part]
    return 2 if any(std is not None and 0 < std < 0.05 for std in stds) else 1


def rule_text(data: ReportData, task: TaskInfo) -> str:
    """`VOC 2007's, the mean of 11 precisions; 8 of 10 classes measured`: what an AP is a mean of.

    Evaluation counts classes where the set has no object of some.
    """
    counts = [
        [row.metrics.get(f"classes/{key}") for key in ("measured", "all")]
        for row in data.rows
        if row.task == task.name and row.status == "done"
    ]
    measured = (f"{n:.0f} of {m:.0f} classes measured" for n, m in counts if n and m)
    return "; ".join(filter(None, [task.rule, *dict.fromkeys(measured)]))


def failure_text(row: ResultRow) -> str:
    """`cw-rgp, seed 2: CUDA out of memory (log: runs/.../log.txt)`."""
    reason = one_line(row.reason or "") or "no reason recorded"
    if len(reason) > MAX_REASON:
        reason = f"{reason[: MAX_REASON - 1]}…"
    log = f" (log: {one_line(row.log)})" if row.log else ""
    return f"{one_line(row.backbone)}, seed {row.seed}: {reason}{log}"


def verdict_text(task: TaskInfo, line: BackboneSummary) -> str:
    """One word where the main metrics agree, else one per metric."""
    main = main_metrics(task)
    words = {
        cell.metric: VERDICTS.get(cell.verdict, cell.verdict)
        for cell in line.cells
        if cell.metric in main
    }
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return "; ".join(f"{metric_label(metric)}: {text}" for metric, text in words.items())


def verdict_heading(task: TaskInfo, baseline: str) -> str:
    """`Box AP higher than random (95 % interval)`: the verdict column's heading, by its metrics."""
    labels = ", ".join(map(metric_label, main_metrics(task)))
    return f"{labels} higher than {baseline} (95 % interval)"


def legend(data: ReportData) -> list[str]:
    """What the marks and numbers of the tables mean."""
    notes = [
        "Mean ± sample standard deviation (ddof 1) over the seeds; "
        f"{DASH} is not measured, or no spread because there is one seed only.",
        f"{BOLD[0].upper()}{BOLD[1:]}.",
        "A seed repeats the fine-tuning with the same pretrained backbone: the spread does not "
        "hold how much another pretraining would differ.",
    ]
    if data.baseline is not None and data.tasks:
        headings = dict.fromkeys(verdict_heading(task, data.baseline) for task in data.tasks)
        notes += [
            f"Difference to {data.baseline}: mean ± sample standard deviation of the paired "
            "differences, of the seeds in common. A * marks an unpaired one (no seeds in "
            "common): difference of the means ± the root of the summed variances.",
            f"{' and '.join(f'“{heading}”' for heading in headings)}, of that metric alone: yes if "
            "the 95 % interval of the mean difference (Student's t over the seeds) lies above 0, "
            "“no, lower” if below, “not told apart” if it holds 0, n/a without one: with fewer "
            "than two seeds, or equal differences.",
            "p: two-sided paired t-test of the differences, same seed against same seed, not "
            "corrected for the number of comparisons.",
        ]
    return notes + unclean_notes(data)


def unclean_notes(data: ReportData) -> list[str]:
    """What † means, where a result has it."""
    if not any(row.dirty and row.status == "done" for row in data.rows):
        return []
    return [
        "† holds results that cannot be told from clean commits: of modified or unknown code, or "
        "of attempts that differ, in the fine-tuning or in what it is made from; or results of one "
        "row that stand on different backbones."
    ]


def source_notes(data: ReportData) -> list[str]:
    """Whose the numbers of several runs are, and which of them are compared with none."""
    if not data.sources:
        return []
    listed = "; ".join(source.text for source in data.sources)
    notes = [
        f"Whose: {listed}. A backbone with several marks is the same in these runs; a seed that "
        "they have in common counts once."
    ]
    return notes + [
        f"Compared with none on {task.title}, as nothing says that their task is the same: "
        f"{', '.join(task.apart)}."
        for task in data.tasks
        if task.apart
    ]


def findings(data: ReportData) -> list[str]:
    """One sentence or two per task: what the numbers allow to say, and on how much they stand."""
    return [_finding(summary, data.baseline) for summary in summarise(data)]


def _finding(summary: TaskSummary, baseline: str | None) -> str:
    """What differs in a task's first main metric, by how much, and what cannot be told apart."""
    metric, decimals = main_metrics(summary.task)[0], task_decimals(summary)
    cells = {
        line.backbone: cell
        for line in summary.backbones
        for cell in line.cells
        if cell.metric == metric
        and cell.spread is not None
        and line.backbone not in summary.task.apart
    }
    title, failures = summary.task.title, _failures(summary)
    lines = {line.backbone: line.cells for line in summary.backbones}
    if not cells:
        return f"{title}: {failures}no finished result."
    counts = sorted({len(cell.values) for cell in cells.values()})
    seeds = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    evidence = [f"{seeds} seed{'' if seeds == '1' else 's'} of fine-tuning"]
    if len({tuple(seed for seed, _ in cell.values) for cell in cells.values()}) > 1:
        evidence.append("each comparison on the seeds in common only")
    if images := summary.task.num_test_images:
        evidence.append(f"{images:,} test image{'' if images == 1 else 's'}")
    if cells.keys() - {baseline}:
        evidence.append(EVIDENCE)
    against: dict[Verdict, list[str]] = {"yes": [], "worse": [], "no": [], "n/a": []}
    base = next((cell for name, cell in cells.items() if name == baseline), None)
    for name, cell in cells.items():
        if base is not None and cell is not base:
            num_seeds = max(len(cell.values), len(base.values))
            how_much = [_by_how_much(cell, decimals, num_seeds), *_otherwise(cell, lines[name])]
            against[cell.verdict].append(f"{name} ({'; '.join(how_much)})")
    one_seed = counts[-1] == 1 and len(cells) > 1
    parts = ["no difference can be told with one seed, two give an interval"] if one_seed else []
    best = leaders({name: dict(cell.values) for name, cell in cells.items()})
    others = [name for name in cells if name != baseline]
    words = {verdict: f"{text} {baseline}" for verdict, text in AGAINST.items()}
    if best[:1] == [baseline]:
        words["no"] = f"{baseline} has the highest mean; not told apart from it"
    parts += [
        f"{f'compared with {baseline}' if one_seed else words[verdict]}: {', '.join(told)}"
        for verdict, told in against.items()
        if told
    ]
    everybody = against["no"] or len(against["worse"]) == len(others)
    if len(others) > 1 and not (best[:1] == [baseline] and everybody):
        parts += _highest(best)
    shown = "; ".join(parts) or f"nothing to compare {next(iter(cells))} with"
    head = f"{title}, {metric_label(metric)}: {failures}{shown}"
    return f"{head}. Evidence: {', '.join(evidence)}."


def _highest(best: Sequence[str]) -> list[str]:
    """`b has the highest mean; not told apart from it: a`, of those that lead; b comes first."""
    if len(best) == 1:
        return [f"{best[0]} is higher than each of the others"]
    rest = ", ".join(best[1:])
    return [f"{best[0]} has the highest mean; not told apart from it: {rest}"] if best else []


def _otherwise(main: Cell, cells: Iterable[Cell]) -> list[str]:
    """`Box AP50 is higher`: metrics that differ from the baseline where the main one does not so.

    A mark or colour of theirs in the tables would else contradict the sentence.
    """
    words: dict[Verdict, str] = {"yes": "higher", "worse": "lower"}
    return [
        f"{metric_label(cell.metric)} is {words[cell.verdict]}"
        for cell in cells
        if cell.verdict in words and cell.verdict != main.verdict
    ]


def _failures(summary: TaskSummary) -> str:
    """`of 4 fine-tunings 1 failed and 2 not run, as what they need failed; `, or nothing."""
    rows = [row for line in summary.backbones for row in line.rows]
    failed = sum(row.status == "failed" for row in rows)
    kept_back = sum(is_kept_back(row.reason) for row in rows)
    words = [f"{failed} failed"] if failed else []
    words += [f"{kept_back} not run, as what they need failed"] if kept_back else []
    return f"of {len(rows)} fine-tunings {' and '.join(words)}; " if words else ""


def _by_how_much(cell: Cell, decimals: int, num_seeds: int) -> str:
    """`+11.5, 95 % interval 5.1 to 17.9`; without the interval where there is none.

    Where the two means stand on `num_seeds` and fewer are in common, it says how many are.
    """
    diff = cell.difference
    assert diff is not None
    mean = number(diff.mean, decimals)
    text = mean if mean.startswith("−") or float(mean) == 0 else f"+{mean}"
    if cell.interval is not None:
        low, high = (number(bound, decimals) for bound in cell.interval)
        text += f", 95 % interval {low} to {high}"
    if not diff.paired:
        return f"{text}, no seeds in common"
    return text if diff.n == num_seeds else f"{text}, {diff.n} of {num_seeds} seeds in common"


def warnings(data: ReportData) -> list[str]:
    """What a reader must know before the numbers."""
    counts = {
        STATUS_TEXT.get(status, status): sum(row.status == status for row in data.rows)
        for status in get_args(Status)
        if status != "done"
    }
    lines = [f"{n} of {len(data.rows)} fine-tunings {text}" for text, n in counts.items() if n]
    doubts = [row.doubt or MODIFIED for row in data.rows if row.dirty and row.status == "done"]
    return [*lines, *unclean_remarks(doubts, len(data.rows)), *data.remarks]


def tex(text: str) -> str:
    """Return untrusted text for LaTeX: every special character escaped."""
    return text.translate(LATEX_SPECIAL)


# --- provenance -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One named piece of provenance: a text, a list of pairs, or (deeper) folded JSON."""

    name: str
    text: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    folded: str = ""


def provenance(data: ReportData) -> list[Entry]:
    """The provenance's entries; a name that ends in `_s` holds seconds."""
    rows = {(row.task, row.run_dir): row for row in data.rows}.values()  # backbones may share some
    hours = sum((row.wall_time_s or 0.0) * row.num_gpus / 3600 for row in rows)
    values = dict(data.provenance)
    if not data.sources:  # whose results do not say it
        values["GPU hours of fine-tuning"] = f"{hours:.1f}"
    times = {
        task.title: sum(row.wall_time_s or 0.0 for row in rows if row.task == task.name)
        for task in data.tasks
    }
    if any(times.values()):
        values["fine-tuning_time_s"] = times
    return [entry(name, value) for name, value in values.items()]


def entry(name: str, value: Any) -> Entry:
    """One value of the provenance as text."""
    seconds = name.endswith("_s")
    title = name.removesuffix("_s").replace("_", " ")
    if isinstance(value, Mapping) and all(map(_is_flat, value.values())):
        return Entry(title, pairs=tuple((str(k), _scalar(v, seconds)) for k, v in value.items()))
    if _is_flat(value):
        return Entry(title, text=_scalar(value, seconds))
    return Entry(title, folded=indented(value))


def indented(value: Any) -> str:
    """Any nested value as JSON over several lines."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _is_flat(value: Any) -> bool:
    return not isinstance(value, (Mapping, list, tuple))


def _scalar(value: Any, seconds: bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if seconds and isinstance(value, (int, float)):
        return duration(float(value))
    return DASH if value is None else str(value)


def gpu_hours(wall_time_s: float | None, num_gpus: int) -> str:
    """`3.2`, or a dash where no GPU was used."""
    if wall_time_s is None or num_gpus == 0:
        return DASH
    return f"{wall_time_s * num_gpus / 3600:.1f}"


def duration(seconds: float | None) -> str:
    """`1 h 02 min`, `3 min 05 s` or `45 s`; a dash for None."""
    whole = finite(seconds)
    if whole is None:
        return DASH
    minutes, rest = divmod(round(whole), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
