"""A report's tables on a terminal, as wide as that is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from pipeline.report.data import ReportData, summarise
from pipeline.report.tables import Table, probe_table, task_table
from pipeline.report.text import rule_text
from pipeline.stages.files import one_line

DIFFERENCE = "difference"  # from the baseline: the second line of a row


def show_tables(data: ReportData, console: Console) -> None:
    """Print the tables; a line of what failed is cut nowhere, as paths stand in it."""
    for table in rich_tables(data, console.width):
        console.print(table, soft_wrap=isinstance(table, Text))


def rich_tables(data: ReportData, width: int) -> list[RichTable | Text]:
    """Return the tables for a terminal, what failed below each task's.

    A task with many metrics gives one table per kind (box, mask).
    """
    tables: list[RichTable | Text] = []
    for summary in summarise(data):
        metrics = summary.task.metrics
        kinds = dict.fromkeys(metric.partition("/")[0] for metric in metrics)
        for kind in kinds if len(metrics) > 3 else [None]:
            table = task_table(summary, data.baseline, kind)
            if rule := rule_text(data, summary.task):
                table = replace(table, title=f"{table.title} ({rule})")
            labels = table.verdict_heading.partition(" higher than ")[0].replace(", ", ",\n")
            verdicts = [f"{labels}\nhigher\n(95 %)"] if labels else []
            tables.append(
                _rich_table(table, ["Backbone", "Seeds", *table.headings, *verdicts], width)
            )
        if failures := "\n".join(f"{word}: {text}" for word, text in table.failures):
            tables.append(Text(failures, style="red"))
    if data.probes:
        table = probe_table(data)
        headings = ["Backbone", *(re.sub("[ /]", "\n", heading) for heading in table.headings)]
        tables.append(_rich_table(table, headings, width))
    return tables


def _rich_table(table: Table, headings: Sequence[str], width: int) -> RichTable:
    """Return a table of at most `width` columns: names are folded, words and numbers are not."""
    rich = RichTable(title=Text(one_line(table.title)), title_justify="left")
    rows: list[list[Text]] = []
    for line in (line for line in table.lines if not line.source):
        cells = []
        for cell in line.cells:
            cells.append(Text(cell.text, style="bold" if cell.best else ""))
            if cell.difference:
                cells[-1].append(f"\n{cell.difference}", style="dim not bold")
        seeds = [Text("\n".join(filter(None, [line.seeds, line.state])))] if line.seeds else []
        verdict = [Text(line.verdict)] if table.verdict_heading else []
        name = Text(one_line(line.marked))
        if any(cell.difference for cell in line.cells):
            name.append(f"\n{DIFFERENCE}", style="dim")
        rows.append([name, *seeds, *cells, *verdict])
    columns = [[each, *(row[at].plain for row in rows)] for at, each in enumerate(headings)]
    columns[0] = [headings[0], *(DIFFERENCE for text in columns[0] if DIFFERENCE in text)]
    whole = [max(len(line) for text in texts for line in text.splitlines()) for texts in columns]
    least = [  # a word a line, where there are words
        max(len(word) for text in texts for word in text.split())
        if any(word.isalpha() for text in texts[1:] for word in text.split())
        else all_of
        for texts, all_of in zip(columns, whole, strict=True)
    ]
    rules = 3 * len(headings) + 1
    widths = whole if sum(whole) + rules <= width else least
    rich.padding = (0, 1 if sum(widths) + rules <= width else 0)
    rich.add_column(Text(headings[0]), overflow="fold", min_width=widths[0])
    for heading, each in zip(headings[1:], widths[1:], strict=True):
        rich.add_column(Text(heading), justify="right", width=each)
    for row in rows:
        rich.add_row(*row)
    return rich
