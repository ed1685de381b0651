"""The report's tables and sentences as text: shared wording, Markdown, the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

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
from pipeline.report.provenance import provenance
from pipeline.report.statistics import Difference, Spread, Verdict, finite

DASH = "–"
MAX_REASON = 400
KINDS = {"bbox": "Box", "segm": "Mask", "keypoints": "Keypoint"}
NOT_DONE = {
    "failed": "failed",
    "missing": "not run",
    "running": "still running",
    "queued": "queued",
}
VERDICTS: dict[Verdict, str] = {
    "yes": "yes",
    "no": "no",
    "worse": "no, worse",
    "baseline": "baseline",
    "n/a": "n/a",
}
FINDINGS: dict[Verdict, str] = {
    "yes": "more than the seed spread",
    "no": "within the seed spread",
    "worse": "lower by more than the seed spread on the seeds they share",
    "n/a": "too few seeds for a spread",
}


def metric_label(metric: str) -> str:
    """`bbox/AP50` as a reader's `Box AP50`; other names as they are."""
    kind, _, name = metric.partition("/")
    return f"{KINDS[kind]} {name}" if name and kind in KINDS else metric


def number(value: float | None, decimals: int) -> str:
    """A fixed-point number with a true minus sign, a dash for None."""
    if value is None:
        return DASH
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


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
    found = [cell for line in summary.backbones for cell in line.cells]
    stds = [part.std for cell in found for part in (cell.spread, cell.difference) if part]
    return 2 if any(std is not None and 0 < std < 0.05 for std in stds) else 1


def seeds_text(line: BackboneSummary) -> str:
    """Number of finished seeds: `3`, or `2 of 3` where some are not."""
    return str(line.done) if line.done == line.planned else f"{line.done} of {line.planned}"


def state_text(line: BackboneSummary) -> str:
    """What became of the unfinished seeds: `1 failed, 1 queued`; empty when all are done."""
    parts = [(n, NOT_DONE[status]) for status, n in line.counts.items() if status in NOT_DONE]
    return ", ".join(f"{n} {text}" for n, text in parts)


def verdict_text(task: TaskInfo, line: BackboneSummary) -> str:
    """One word where the main metrics agree, else one per metric."""
    found = {c.metric: VERDICTS[c.verdict] for c in line.cells if c.metric in main_metrics(task)}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{metric_label(metric)}: {text}" for metric, text in found.items())


def verdict_heading(baseline: str) -> str:
    """The verdict column's heading."""
    return f"Beats {baseline} by more than the seed spread"


def unfinished(summary: TaskSummary, status: str) -> list[ResultRow]:
    """A task's rows of one status, in table order."""
    return [row for line in summary.backbones for row in line.rows if row.status == status]


def failure_text(row: ResultRow) -> str:
    """`cw-rgp, seed 2: CUDA out of memory (log: runs/.../log.txt)`."""
    reason = one_line(row.reason or "") or "no reason recorded"
    if len(reason) > MAX_REASON:
        reason = f"{reason[: MAX_REASON - 1]}…"
    log = f" (log: {one_line(row.log)})" if row.log else ""
    return f"{one_line(row.backbone)}, seed {row.seed}: {reason}{log}"


def one_line(text: str) -> str:
    """Text on one line: control characters (terminal escapes too) and white space made a space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def legend(data: ReportData) -> list[str]:
    """What the marks and numbers of the tables mean."""
    notes = [
        "Mean ± sample standard deviation (ddof 1) over the seeds, best mean in bold; "
        f"{DASH} is not measured, or no spread because there is one seed only.",
        "A seed repeats the fine-tuning with the same pretrained backbone: the spread does not "
        "hold how much another pretraining would differ.",
    ]
    if data.baseline is not None:
        notes += [
            f"Difference to {data.baseline}: mean ± sample standard deviation of the paired "
            "differences, same seed against same seed. A * marks an unpaired one (no seeds in "
            "common): difference of the means ± the root of the summed variances.",
            f"“{verdict_heading(data.baseline)}”: yes if the mean difference is larger than its "
            "own standard deviation and than the standard deviation of either backbone; “no, "
            "worse” is the same downwards; n/a with fewer than two seeds. It describes these runs "
            "and is no significance test.",
            "p: two-sided paired t-test of the differences, same seed against same seed, not "
            "corrected for the number of comparisons.",
        ]
    if any(row.dirty and row.status == "done" for row in data.rows):
        notes.append("† holds results from modified (uncommitted) code.")
    return notes


def findings(data: ReportData) -> list[str]:
    """One sentence per task: who is highest, by how much, against what."""
    return [finding(summary, data.baseline) for summary in summarise(data)]


def finding(summary: TaskSummary, baseline: str | None) -> str:
    """The highest mean of a task's first main metric, in words."""
    metric = main_metrics(summary.task)[0]
    found = [
        (line.backbone, cell, cell.spread)
        for line in summary.backbones
        for cell in line.cells
        if cell.metric == metric and cell.spread is not None
    ]
    if not found:
        return f"{summary.task.title}: no finished result."
    decimals = task_decimals(summary)
    name, cell, best = max(found, key=lambda entry: entry[2].mean)
    text = (
        f"{summary.task.title}: {name} has the highest {metric_label(metric)}, "
        f"{spread_text(best, decimals)} over {best.n} seed{'' if best.n == 1 else 's'}"
    )
    if name == baseline:
        return f"{text}; it is the baseline." if len(found) > 1 else f"{text}."
    if cell.difference is None:
        return f"{text}."
    reading = FINDINGS[cell.verdict]
    return f"{text}: {difference_text(cell.difference, decimals)} against {baseline}, {reading}."


# --- probes -----------------------------------------------------------------------------------


def probe_columns(data: ReportData) -> list[tuple[str, str]]:
    """(probe, metric) pairs in the order they first appear."""
    pairs = [(row.probe, metric) for row in data.probes for metric in row.metrics]
    return sorted(dict.fromkeys(pairs), key=lambda pair: [p for p, _ in pairs].index(pair[0]))


def probe_table(data: ReportData) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Headings and (backbone, cells) of the probes; backbones without any are left out."""
    columns = probe_columns(data)
    lines: dict[str, list[str]] = {}
    found = {(row.backbone, row.probe): row.metrics for row in data.probes}
    for name in data.backbones:
        if any(row.backbone == name for row in data.probes):
            lines[name] = []
    for probe, metric in columns:
        values = {n: finite(found.get((n, probe), {}).get(metric)) for n in lines}
        largest = max((abs(v) for v in values.values() if v is not None), default=0.0)
        decimals = 1 if largest >= 10 else 3
        for name, value in values.items():
            lines[name].append(number(value, decimals))
    return [f"{probe} {metric_label(metric)}" for probe, metric in columns], list(lines.items())


# --- Markdown ---------------------------------------------------------------------------------


def markdown(data: ReportData, comparison: str = "") -> str:
    """The report's tables in GitHub's Markdown, the ready-made `comparison` first."""
    summaries = summarise(data)
    parts = [f"# {md(data.pipeline)}: transfer to detection"]
    parts += ["\n".join(f"- {md(sentence)}" for sentence in findings(data)), comparison]
    for summary in summaries:
        parts += _markdown_task(summary, data.baseline)
    if data.probes:
        headings, lines = probe_table(data)
        body = [[md(name), *cells] for name, cells in lines]
        parts += ["## Probes", _grid(["Backbone", *map(md, headings)], body)]
    parts += ["## How to read it", "\n".join(f"- {md(note)}" for note in legend(data))]
    parts += ["## Provenance", _markdown_provenance(data)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_task(summary: TaskSummary, baseline: str | None) -> list[str]:
    task, decimals = summary.task, task_decimals(summary)
    labels = [md(metric_label(metric)) for metric in task.metrics]
    verdicts = [md(verdict_heading(baseline))] if baseline is not None else []
    body = []
    for line in summary.backbones:
        state = f" ({state_text(line)})" if state_text(line) else ""
        last = [md(verdict_text(task, line))] if baseline is not None else []
        cells = [_markdown_cell(cell, decimals) for cell in line.cells]
        mark = " †" if line.dirty else ""
        body.append([md(line.backbone) + mark, f"{seeds_text(line)}{state}", *cells, *last])
    parts = [f"## {md(task.title)}", _grid(["Backbone", "Seeds", *labels, *verdicts], body)]
    if baseline is not None:
        body = [
            [md(line.backbone), *(_difference_and_p(c, decimals) for c in line.cells)]
            for line in summary.backbones
            if line.backbone != baseline
        ]
        heading = f"Difference to {md(baseline)}"
        parts.append(_grid([heading, *labels], [[n, *map(md, cells)] for n, *cells in body]))
    failed = [f"- **failed**: {md(failure_text(row))}" for row in unfinished(summary, "failed")]
    return [*parts, "\n".join(failed)]


def _difference_and_p(cell: Cell, decimals: int) -> str:
    return ", ".join(filter(None, [difference_text(cell.difference, decimals), p_text(cell.p)]))


def _markdown_cell(cell: Cell, decimals: int) -> str:
    if cell.spread is None:
        return DASH
    text = f"{spread_text(cell.spread, decimals)} ({cell.spread.n})"
    return f"**{text}**" if cell.best else text


def _markdown_provenance(data: ReportData) -> str:
    lines = [f"- command: {md(data.command)}"]
    for entry in provenance(data):
        text = entry.text or ", ".join(f"{key} {value}" for key, value in entry.pairs)
        lines += [f"- {md(entry.name)}: {md(text)}"] if not entry.folded else []
    return "\n".join(lines)


def _grid(headings: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    align = ["---", *("---:" for _ in headings[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headings, align, *body])


def md(text: str) -> str:
    """Untrusted text as one line of literal Markdown: no markup, no HTML, no cell borders."""
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", escaped)


# --- terminal ---------------------------------------------------------------------------------


def rich_tables(data: ReportData) -> list[Table]:
    """The tables for a terminal; a task with many metrics gives one per kind (box, mask)."""
    tables = []
    for summary in summarise(data):
        groups: dict[str, list[str]] = {}
        for metric in summary.task.metrics:
            groups.setdefault(metric.partition("/")[0], []).append(metric)
        if len(summary.task.metrics) <= 3:
            groups = {"": list(summary.task.metrics)}
        tables += [_rich_task(summary, group, data.baseline) for group in groups.values()]
        failed = [f"failed: {failure_text(row)}" for row in unfinished(summary, "failed")]
        tables[-1].caption = Text("\n".join(failed), style="red") if failed else None
    if data.probes:
        headings, lines = probe_table(data)
        table = _rich_table("Probes", ["Backbone", *(re.sub("[ /]", "\n", h) for h in headings)])
        for name, cells in lines:
            table.add_row(Text(one_line(name)), *map(Text, cells))
        tables.append(table)
    return tables


def _rich_table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", caption_justify="left")
    for i, heading in enumerate(headings):
        if i == 0:
            table.add_column(Text(heading), overflow="fold", min_width=len(heading))
        else:
            table.add_column(Text(heading), justify="right", no_wrap=True)
    return table


def _rich_task(summary: TaskSummary, metrics: Sequence[str], baseline: str | None) -> Table:
    group = TaskInfo(summary.task.name, summary.task.title, tuple(metrics))
    verdicts = ["Beyond\nspread"] if baseline is not None else []
    table = _rich_table(
        one_line(group.title), ["Backbone", "Seeds", *map(metric_label, metrics), *verdicts]
    )
    decimals = task_decimals(summary)
    for line in summary.backbones:
        cells = [_rich_cell(c, decimals) for c in line.cells if c.metric in metrics]
        last = [Text(verdict_text(group, line))] if baseline is not None else []
        seeds = Text("\n".join(filter(None, [seeds_text(line), state_text(line)])))
        table.add_row(
            Text(one_line(line.backbone) + (" †" if line.dirty else "")), seeds, *cells, *last
        )
    return table


def _rich_cell(cell: Cell, decimals: int) -> Text:
    text = Text(spread_text(cell.spread, decimals), style="bold" if cell.best else "")
    if cell.difference is not None:
        text.append(f"\n{difference_text(cell.difference, decimals)}", style="dim not bold")
    return text
