"""The tables of a report: one model, filled once, and a thin writer for every format."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from itertools import count

from pipeline.report.data import (
    Cell,
    PublishedProbe,
    PublishedRow,
    ReportData,
    TaskSummary,
    summarise,
)
from pipeline.report.statistics import SIGNIFICANT, Verdict, finite
from pipeline.report.text import (
    BOLD,
    DASH,
    MARK,
    SEARCHED,
    STATUS_TEXT,
    difference_text,
    failure_text,
    findings,
    legend,
    metric_label,
    number,
    p_text,
    provenance,
    rule_text,
    source_notes,
    task_decimals,
    tex,
    unclean_notes,
    verdict_heading,
    verdict_text,
    warnings,
)
from pipeline.stages.files import one_line
from pipeline.stages.run_folder import is_kept_back


@dataclass(frozen=True)
class TableCell:
    """A number as printed, and what may stand beside it; `n` is 0 where no seeds are behind it."""

    mean: str = DASH
    std: str | None = None
    n: int = 0
    best: bool = False
    difference: str = ""
    p: str = ""
    verdict: Verdict = "n/a"
    significant: bool = False

    @property
    def text(self) -> str:
        """`23.9 ± 0.4`; the mean alone where it is not one over seeds."""
        return f"{self.mean} ± {self.std or DASH}" if self.n else self.mean


@dataclass(frozen=True)
class Line:
    """A backbone; `state` is what became of unfinished seeds, `source` marks a published line.

    `searched` tells that a published line's learning rate was searched for each backbone; None
    where the source does not say.
    """

    name: str
    cells: tuple[TableCell, ...]
    seeds: str = ""
    done: int = 0
    state: str = ""
    verdict: str = ""
    dirty: bool = False
    source: str = ""
    source_number: int = 0
    searched: bool | None = False

    @property
    def marked(self) -> str:
        """The name with its marks: † no clean commit, [1] the source it is from, § searched."""
        source = f" [{self.source_number}]" if self.source else ""
        source += f" {SEARCHED}" if self.searched else ""
        return f"{self.name}{source}{' †' if self.dirty else ''}"


@dataclass(frozen=True)
class Table:
    """`headings` are those of the cells; `groups` holds (heading, labels of its columns)."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[Line, ...]
    verdict_heading: str = ""
    failures: tuple[tuple[str, str], ...] = ()  # failed or not run, and why
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    notes: tuple[str, ...] = ()


def task_table(summary: TaskSummary, baseline: str | None, kind: str | None = None) -> Table:
    """Return a task's table; with `kind` (bbox, segm) of these metrics alone."""
    task, decimals = summary.task, task_decimals(summary)
    if kind is not None:
        metrics = tuple(metric for metric in task.metrics if metric.partition("/")[0] == kind)
        task = replace(task, metrics=metrics)
    lines = [
        Line(
            name=line.backbone,
            cells=tuple(_cell(c, decimals) for c in line.cells if c.metric in task.metrics),
            seeds=str(line.done) if line.done == line.planned else f"{line.done} of {line.planned}",
            done=line.done,
            state=", ".join(
                f"{n} {STATUS_TEXT.get(s, s)}" for s, n in line.counts.items() if s != "done"
            ),
            verdict=verdict_text(task, line),
            dirty=line.dirty,
        )
        for line in summary.backbones
    ]
    rows = [row for line in summary.backbones for row in line.rows]
    return Table(
        title=task.title,
        headings=tuple(map(metric_label, task.metrics)),
        lines=tuple(lines),
        verdict_heading="" if baseline is None else verdict_heading(task, baseline),
        failures=tuple(
            (STATUS_TEXT.get(row.status, row.status), failure_text(row))
            for row in rows
            if row.status == "failed" or is_kept_back(row.reason)
        ),
    )


def _cell(cell: Cell, decimals: int) -> TableCell:
    spread = cell.spread
    return TableCell(
        mean=number(spread.mean if spread else None, decimals),
        std=number(spread.std, decimals) if spread and spread.std is not None else None,
        n=spread.n if spread else 0,
        best=cell.best,
        difference=difference_text(cell.difference, decimals) if cell.difference else "",
        p=p_text(cell.p),
        verdict=cell.verdict,
        significant=cell.p is not None and cell.p < SIGNIFICANT,
    )


def probe_table(data: ReportData) -> Table:
    """Return what the probes measured, published rows below; backbones without any are left out."""
    pairs = [(row.probe, metric) for row in data.probes for metric in row.metrics]
    columns = sorted(dict.fromkeys(pairs), key=lambda pair: [p for p, _ in pairs].index(pair[0]))
    measured = {(row.backbone, row.probe): row.metrics for row in data.probes}
    probed = {row.backbone for row in data.probes}
    cells: dict[str, list[TableCell]] = {name: [] for name in data.backbones if name in probed}
    for probe, metric in columns:
        values = {n: finite(measured.get((n, probe), {}).get(metric)) for n in cells}
        largest = max((abs(v) for v in values.values() if v is not None), default=0.0)
        for name, value in values.items():
            cells[name].append(TableCell(number(value, 1 if largest >= 10 else 3)))
    headings = tuple(f"{probe} {metric_label(metric)}" for probe, metric in columns)
    lines = tuple(Line(name, tuple(c)) for name, c in cells.items())
    published, notes = _published_probe_lines(data.published_probes, columns)
    return Table("Probes", headings, (*lines, *published), notes=tuple(notes))


def _published_probe_lines(
    rows: Sequence[PublishedProbe], columns: Sequence[tuple[str, str]]
) -> tuple[list[Line], list[str]]:
    """Return the published lines of the probes, and the notes on them."""
    sources = list(dict.fromkeys(row.source for row in rows))
    lines, notes = [], [_sources_note(sources)] if sources else []
    for row in rows:
        values = {(row.probe, metric): value for metric, value in row.metrics.items()}
        cells = tuple(TableCell(number(values.get(column), 2)) for column in columns)
        number_of_source = sources.index(row.source) + 1
        lines.append(Line(row.label, cells, source=row.source, source_number=number_of_source))
        notes.append(f"Beside {row.probe}: {row.data}, {row.arch}; {row.protocol}.")
        if row.inferred:
            keys = ", ".join(row.inferred)
            notes.append(f"{row.label}: {keys} inferred, not said by the source.")
    return lines, list(dict.fromkeys(notes))


def paper_table(data: ReportData) -> Table:
    """Return all tasks side by side, as the papers print them, published rows below."""
    tables = [task_table(summary, data.baseline) for summary in summarise(data)]
    labels: dict[tuple[int, str], list[str]] = {}
    for i, table in enumerate(tables):
        for label in table.headings:
            kind, _, name = label.rpartition(" ")
            heading = f"{table.title}, {kind.lower()}" if kind else table.title
            labels.setdefault((i, heading), []).append(name)
    groups = tuple((heading, tuple(names)) for (_, heading), names in labels.items())
    lines = []
    for i, name in enumerate(data.backbones):
        parts = [table.lines[i] for table in tables]
        done = [str(part.done) for part in parts]
        seeds = done[0] if len(set(done)) == 1 else "/".join(done)
        cells = tuple(cell for part in parts for cell in part.cells)
        lines.append(Line(name, cells, seeds, dirty=any(part.dirty for part in parts)))
    published = _published_lines(data)
    notes = source_notes(data)
    if any(cell.significant for line in lines for cell in line.cells):
        notes.append(
            f"{MARK} differs from {data.baseline} with p < {SIGNIFICANT}: two-sided paired t-test, "
            "same seed against same seed, not corrected for the number of comparisons."
        )
    notes += _published_notes(data, published)
    rules = ((task.title, rule_text(data, task)) for task in data.tasks)
    notes += [f"AP of {title}: {rule}." for title, rule in rules if rule]
    headings = tuple(f"{heading} {name}" for heading, names in groups for name in names)
    return Table("", headings, (*lines, *published), groups=groups, notes=tuple(notes))


def _published_lines(data: ReportData) -> list[Line]:
    """Return the published lines beside the tasks; one name and source share a line."""
    shared: dict[tuple[str, str, bool | None, int], dict[str, PublishedRow]] = {}
    for task in data.tasks:
        for row in task.published:
            keys = ((row.label, row.source, row.search, copy) for copy in count())
            key = next(key for key in keys if task.name not in shared.get(key, {}))
            shared.setdefault(key, {})[task.name] = row
    columns = [(task.name, metric) for task in data.tasks for metric in task.metrics]
    sources = list(dict.fromkeys(source for _, source, _, _ in shared))
    lines = []
    for (label, source, search, _), rows in shared.items():
        cells = []
        for task_name, metric in columns:
            beside = rows.get(task_name)
            mean = beside.metrics.get(metric) if beside else None
            std = beside.stds.get(metric) if beside else None
            cells.append(TableCell(number(mean, 1), None if std is None else number(std, 2)))
        number_of_source = sources.index(source) + 1
        lines.append(
            Line(
                label,
                tuple(cells),
                source=source,
                source_number=number_of_source,
                searched=search,
            )
        )
    return lines


def _published_notes(data: ReportData, lines: Sequence[Line]) -> list[str]:
    """Return what has to be known of the published lines: sources, protocols, what is inferred."""
    if not lines:
        return []
    sources = {line.source: line.source_number for line in lines}
    notes = [_sources_note(sources)]
    if any(line.searched for line in lines):
        notes.append(
            f"{SEARCHED} the fine-tuning learning rate was searched for each backbone: another "
            "protocol than one rate for all, as here."
        )
    if silent := {f"[{line.source_number}]": 0 for line in lines if line.searched is None}:
        notes.append(f"Not said whether the learning rate was searched: {', '.join(silent)}.")
    for task in data.tasks:
        inferred: dict[str, list[str]] = {}
        for row in task.published:
            what = ", ".join([row.data, row.detector, row.schedule])
            notes.append(f"Beside {task.title}: {what}; {row.protocol}.")
            if row.inferred:
                inferred.setdefault(", ".join(row.inferred), []).append(row.label)
        notes += [
            f"Beside {task.title}: {keys} inferred, not said by the source, of {'; '.join(labels)}."
            for keys, labels in inferred.items()
        ]
    return list(dict.fromkeys(notes))


def _sources_note(sources: Iterable[str]) -> str:
    listed = "; ".join(f"[{i}] {source}" for i, source in enumerate(sources, start=1))
    return f"Published numbers, not measured here: {listed}."


# --- Markdown ---------------------------------------------------------------------------------


def markdown(data: ReportData) -> str:
    """Return the report's tables in GitHub's Markdown."""
    parts = [f"# {md(data.pipeline)}: transfer to detection", bullets(findings(data))]
    parts.append(bullets(warnings(data)))
    paper = paper_table(data)
    parts += [_markdown_table(paper, _text_and_mark), bullets(paper.notes)]
    for summary in summarise(data):
        parts += _markdown_task(task_table(summary, data.baseline), data.baseline)
    if data.probes:
        table = probe_table(data)
        body = []
        for line in table.lines:
            cells = [cell.text for cell in line.cells]
            body.append(
                _published_markdown(line, cells) if line.source else [md(line.name), *cells]
            )
        parts += ["## Probes", grid(["Backbone", *map(md, table.headings)], body)]
        parts.append(bullets(table.notes))
    parts += ["## How to read it", bullets(legend(data)), "## Provenance"]
    origins = []
    for entry in provenance(data):
        text = entry.text or ", ".join(f"{key} {value}" for key, value in entry.pairs)
        origins += [f"{entry.name}: {text}"] if not entry.folded else []
    parts.append(f"- command: {code_span(data.command)}\n{bullets(origins)}".strip())
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_task(table: Table, baseline: str | None) -> list[str]:
    whole = _markdown_table(table, lambda cell: f"{cell.text} ({cell.n})" if cell.n else DASH)
    parts = [f"## {md(table.title)}", whole]
    if baseline is not None:
        body = []
        for line in table.lines:
            if line.name != baseline:
                texts = (", ".join(filter(None, [c.difference or DASH, c.p])) for c in line.cells)
                body.append([md(line.name), *map(md, texts)])
        parts.append(grid([f"Difference to {md(baseline)}", *map(md, table.headings)], body))
    return [*parts, "\n".join(f"- **{word}**: {md(text)}" for word, text in table.failures)]


def _text_and_mark(cell: TableCell) -> str:
    spread = "" if cell.std is None else f" ± {cell.std}"
    return f"{cell.mean}{spread}{' ' + MARK if cell.significant else ''}"


def _markdown_table(table: Table, show: Callable[[TableCell], str]) -> str:
    """Return backbones, seeds, the cells as `show` has them, and verdicts where there are any."""
    verdicts = [md(table.verdict_heading)] if table.verdict_heading else []
    body = []
    for line in table.lines:
        name, seeds = md(line.marked), f"{line.seeds} ({line.state})" if line.state else line.seeds
        cells = [f"**{show(cell)}**" if cell.best else show(cell) for cell in line.cells]
        if line.source:
            seeds, (name, *cells) = "published", _published_markdown(line, cells)
        body.append([name, seeds, *cells, *([md(line.verdict)] if verdicts else [])])
    return grid(["Backbone", "Seeds", *map(md, table.headings), *verdicts], body)


def _published_markdown(line: Line, cells: Sequence[str]) -> list[str]:
    """Return a published line's name and cells in italics."""
    return [f"*{md(line.marked)}*", *(c if c == DASH else f"*{c}*" for c in cells)]


def bullets(texts: Iterable[str]) -> str:
    """Return untrusted texts as a list."""
    return "\n".join(f"- {md(text)}" for text in texts)


def grid(headings: Sequence[str], body: Iterable[Sequence[str]], num_names: int = 1) -> str:
    """Return a table of Markdown cells; all columns but the first `num_names` hold numbers."""
    align = ["---"] * num_names + ["---:"] * (len(headings) - num_names)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headings, align, *body])


def md(text: str) -> str:
    """Return untrusted text as one line of literal Markdown: no markup, HTML or cell borders."""
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", escaped)


def code_span(text: str) -> str:
    """Return untrusted text as code, in which nothing is escaped; its fence is in it nowhere."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if fence != "`" else ""  # Markdown takes one off each side
    return f"{fence}{space}{line}{space}{fence}"


# --- LaTeX and CSV ----------------------------------------------------------------------------


def latex(data: ReportData) -> str:
    """Return the comparison for a paper; it needs the package booktabs."""
    table = paper_table(data)
    sizes = [len(labels) for _, labels in table.groups]
    starts = [3 + sum(sizes[:i]) for i in range(len(sizes))]
    rules = (rf"\cmidrule(lr){{{a}-{a + n - 1}}}" for a, n in zip(starts, sizes, strict=True))
    heads = (rf"\multicolumn{{{len(labels)}}}{{c}}{{{tex(h)}}}" for h, labels in table.groups)
    labels = [tex(label) for _, group in table.groups for label in group]
    published = [_latex_line(line) for line in table.lines if line.source]
    notes = [*findings(data), *table.notes, *unclean_notes(data)]
    caption = f"Transfer to detection: mean ± standard deviation over seeds; {BOLD}."
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{lr{'r' * sum(sizes)}}}",
        r"\toprule",
        rf" & & {' & '.join(heads)} \\",
        " ".join(rules),
        rf"Backbone & Seeds & {' & '.join(labels)} \\",
        r"\midrule",
        *(_latex_line(line) for line in table.lines if not line.source),
        *([r"\midrule"] if published else []),
        *published,
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{tex(' '.join([caption, *notes]))}}}",
        rf"\label{{tab:{''.join(c if c.isalnum() else '-' for c in data.pipeline)}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_line(line: Line) -> str:
    name = tex(line.marked)
    cells = [rf"\textit{{{name}}}" if line.source else name, line.seeds]
    for cell in line.cells:
        mean = cell.mean.replace("−", "-")
        mean = rf"\mathbf{{{mean}}}" if cell.best else mean
        spread = "" if cell.std is None else rf" \pm {cell.std}"
        mark = tex(MARK) if cell.significant else ""
        cells.append("--" if cell.mean == DASH else f"${mean}{spread}${mark}")
    return rf"{' & '.join(cells)} \\"


def results_csv(data: ReportData) -> str:
    """Return one line per planned fine-tuning; empty where nothing was measured."""
    columns = dict.fromkeys(metric for task in data.tasks for metric in task.metrics)
    columns |= dict.fromkeys(name for row in data.rows for name in sorted(row.metrics))
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rules = {task.name: task.rule for task in data.tasks}
    sources = {source.mark: source.text for source in data.sources}
    more = ["source"] if sources else []
    writer.writerow(["backbone", "task", "seed", "status", *columns, "ap_rule", *more])
    for row in data.rows:
        values = row.metrics if row.status == "done" else {}
        cells = (finite(values.get(name)) for name in columns)
        line = [row.backbone, row.task, row.seed, row.status, *cells, rules[row.task]]
        whose = "; ".join(sources[mark] for mark in row.source.split(", ") if sources)
        writer.writerow([*line, *([whose] if more else [])])
    return buffer.getvalue()
