"""The comparison as the papers print it: all tasks side by side, published rows below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.report.data import Cell, ReportData, TaskSummary, summarise
from pipeline.report.published import PUBLISHED, Value
from pipeline.report.statistics import SIGNIFICANT, Spread
from pipeline.report.text import DASH, md, metric_label, number, task_decimals

MARK = "‡"
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "†": r"\dag{}", MARK: r"\ddag{}",
}  # fmt: skip


@dataclass(frozen=True)
class PaperCell:
    """Mean and spread as printed; `significant` against the baseline."""

    mean: str
    std: str | None
    best: bool = False
    significant: bool = False


@dataclass(frozen=True)
class PaperLine:
    """A backbone with a cell for every column; `source` marks a published line."""

    name: str
    seeds: str
    cells: tuple[PaperCell | None, ...]
    source: str | None = None
    dirty: bool = False


@dataclass(frozen=True)
class PaperTable:
    """`groups` holds (heading, labels of its columns)."""

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    lines: tuple[PaperLine, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources of the published lines, in the order of their first use."""
        return tuple(dict.fromkeys(line.source for line in self.lines if line.source))


def paper_table(data: ReportData) -> PaperTable:
    """Return all tasks side by side, own lines first."""
    summaries = summarise(data)
    groups: list[tuple[str, tuple[str, ...]]] = []
    for summary in summaries:
        kinds: dict[str, list[str]] = {}
        for metric in summary.task.metrics:
            label = metric_label(metric)
            kinds.setdefault(label.rpartition(" ")[0], []).append(label.rpartition(" ")[2])
        groups += [
            (f"{summary.task.title}, {kind.lower()}" if kind else summary.task.title, tuple(labels))
            for kind, labels in kinds.items()
        ]
    own = [_own_line(data, name, summaries) for name in data.backbones]
    return PaperTable(tuple(groups), (*own, *_published_lines(summaries)))


def _own_line(data: ReportData, name: str, summaries: tuple[TaskSummary, ...]) -> PaperLine:
    cells: list[PaperCell | None] = []
    done: list[int] = []
    dirty = False
    for summary in summaries:
        line = next(line for line in summary.backbones if line.backbone == name)
        decimals = task_decimals(summary)
        cells += [_own_cell(cell, decimals) for cell in line.cells]
        done.append(line.done)
        dirty = dirty or line.dirty
    seeds = str(done[0]) if len(set(done)) == 1 else "/".join(map(str, done))
    return PaperLine(name, seeds, tuple(cells), dirty=dirty)


def _own_cell(cell: Cell, decimals: int) -> PaperCell | None:
    if cell.spread is None:
        return None
    significant = cell.p is not None and cell.p < SIGNIFICANT
    spread: Spread = cell.spread
    std = None if spread.std is None else number(spread.std, decimals)
    return PaperCell(number(spread.mean, decimals), std, cell.best, significant)


def _published_lines(summaries: tuple[TaskSummary, ...]) -> list[PaperLine]:
    """Return the published lines of every task's reference; one name and source share a line."""
    found: dict[tuple[str, str], dict[tuple[str, str], Value]] = {}
    for summary in summaries:
        for row in PUBLISHED[summary.task.reference] if summary.task.reference else ():
            values = found.setdefault((row.backbone, row.source), {})
            values |= {(summary.task.name, metric): v for metric, v in row.metrics.items()}
    columns = [(s.task.name, metric) for s in summaries for metric in s.task.metrics]
    return [
        PaperLine(name, "", tuple(_published_cell(values.get(key)) for key in columns), source)
        for (name, source), values in found.items()
    ]


def _published_cell(value: Value | None) -> PaperCell | None:
    if value is None:
        return None
    mean, std = value
    return PaperCell(number(mean, 1), None if std is None else number(std, 2))


def paper_notes(data: ReportData, table: PaperTable) -> list[str]:
    """Return what the marks of the table mean."""
    notes = []
    if data.baseline is not None:
        notes.append(
            f"{MARK} differs from {data.baseline} with p < {SIGNIFICANT}: two-sided paired t-test, "
            "same seed against same seed, not corrected for the number of comparisons."
        )
    numbered = (f"[{i}] {source}" for i, source in enumerate(table.sources, start=1))
    if table.sources:
        notes.append(f"Published numbers, not measured here: {'; '.join(numbered)}.")
    return notes


def cell_text(cell: PaperCell | None) -> str:
    """Return `57.2 ± 0.1 ‡`, or a dash."""
    if cell is None:
        return DASH
    spread = "" if cell.std is None else f" ± {cell.std}"
    return f"{cell.mean}{spread}{' ' + MARK if cell.significant else ''}"


def line_name(table: PaperTable, line: PaperLine) -> str:
    """Return the backbone's name with its marks: † modified code, [1] the source it is from."""
    source = f" [{table.sources.index(line.source) + 1}]" if line.source else ""
    return f"{line.name}{source}{' †' if line.dirty else ''}"


def paper_markdown(data: ReportData) -> str:
    """Return the table and its notes in GitHub's Markdown; published lines in italics."""
    table = paper_table(data)
    labels = [f"{heading} {label}" for heading, names in table.groups for label in names]
    rows = [["Backbone", "Seeds", *labels], ["---", *["---:"] * (len(labels) + 1)]]
    for line in table.lines:
        cells = []
        for cell in line.cells:
            text = cell_text(cell)
            cells.append(f"**{text}**" if cell and cell.best else text)
        name = md(line_name(table, line))
        if line.source:
            rows.append([f"*{name}*", "published", *(f"*{c}*" if c != DASH else c for c in cells)])
        else:
            rows.append([name, line.seeds, *cells])
    body = "\n".join(
        f"| {' | '.join(md(c) if i == 0 else c for c in row)} |" for i, row in enumerate(rows)
    )
    notes = "\n".join(f"- {md(note)}" for note in paper_notes(data, table))
    return f"{body}\n\n{notes}" if notes else body


def latex(data: ReportData) -> str:
    """Return the table for a paper; it needs the package booktabs."""
    table = paper_table(data)
    sizes = [len(names) for _, names in table.groups]
    starts = [3 + sum(sizes[:i]) for i in range(len(sizes))]
    rules = (rf"\cmidrule(lr){{{a}-{a + n - 1}}}" for a, n in zip(starts, sizes, strict=True))
    heads = (rf"\multicolumn{{{len(names)}}}{{c}}{{{tex(h)}}}" for h, names in table.groups)
    own = [line for line in table.lines if line.source is None]
    published = [line for line in table.lines if line.source is not None]
    names = [tex(name) for _, group in table.groups for name in group]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{lr{'r' * sum(sizes)}}}",
        r"\toprule",
        rf" & & {' & '.join(heads)} \\",
        " ".join(rules),
        rf"Backbone & Seeds & {' & '.join(names)} \\",
        r"\midrule",
        *(_latex_line(table, line) for line in own),
        *([r"\midrule"] if published else []),
        *(_latex_line(table, line) for line in published),
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{tex(_caption(data, table))}}}",
        rf"\label{{tab:{''.join(c if c.isalnum() else '-' for c in data.pipeline)}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _caption(data: ReportData, table: PaperTable) -> str:
    notes = ["Transfer to detection: mean ± standard deviation over seeds, best mean in bold."]
    return " ".join([*notes, *paper_notes(data, table)])


def _latex_line(table: PaperTable, line: PaperLine) -> str:
    wrap: Callable[[str], str] = (lambda t: rf"\textit{{{t}}}") if line.source else (lambda t: t)
    cells = [wrap(tex(line_name(table, line))), line.seeds, *map(_latex_cell, line.cells)]
    return rf"{' & '.join(cells)} \\"


def _latex_cell(cell: PaperCell | None) -> str:
    if cell is None:
        return "--"
    mean = cell.mean.replace("−", "-")
    text = rf"\mathbf{{{mean}}}" if cell.best else mean
    spread = "" if cell.std is None else rf" \pm {cell.std}"
    return f"${text}{spread}${tex(MARK) if cell.significant else ''}"


def tex(text: str) -> str:
    """Return untrusted text for LaTeX: every special character escaped."""
    escaped = "".join(LATEX_SPECIAL.get(character, character) for character in text)
    return escaped.replace("±", r"$\pm$").replace("−", "$-$").replace("<", r"\textless{}")
