"""The report as one self-contained HTML page: plots, pictures and styles are inside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.data import (
    BackboneSummary,
    Cell,
    Curve,
    ReportData,
    ResultRow,
    TaskSummary,
    further_summaries,
    summarise,
)
from pipeline.report.paper import MARK, line_name, paper_notes, paper_table
from pipeline.report.pictures import pictures
from pipeline.report.plots import (
    CSS_NAMES,
    bar_plot,
    colours,
    curve_series,
    line_plot,
    scatter_plot,
)
from pipeline.report.prediction import Prediction, answer, predictions
from pipeline.report.provenance import duration, gpu_hours, provenance
from pipeline.report.statistics import finite
from pipeline.report.text import (
    DASH,
    NOT_DONE,
    difference_text,
    failure_text,
    findings,
    legend,
    metric_label,
    number,
    p_text,
    probe_table,
    seeds_text,
    spread_text,
    state_text,
    task_decimals,
    unfinished,
    verdict_heading,
    verdict_text,
)

LOSSES = ("loss", "total_loss")
HOUSEKEEPING = {"lr", "time", "eta", "seconds", "memory"}
POSITIONS = {"step", "epoch", "iteration"}

Plot = dict[str, Any]


def html(data: ReportData) -> str:
    """The page. Names and reasons are untrusted and escaped by the template."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(context(data)) + "\n"


def context(data: ReportData) -> dict[str, Any]:
    """What the template shows, as plain values."""
    summaries = summarise(data)
    palette = colours(data.backbones, data.baseline)
    shown, folded = curve_plots(data.pretraining, pretraining_keys, palette)
    headings, probe_lines = probe_table(data)
    return {
        "pipeline": data.pipeline,
        "baseline": data.baseline,
        "verdict_heading": verdict_heading(data.baseline) if data.baseline is not None else None,
        "findings": findings(data),
        "warnings": warnings(data),
        "swatches": {name: CSS_NAMES[colour] for name, colour in palette.items()},
        "paper": paper_context(data),
        "tasks": [task_context(data, summary, palette) for summary in summaries],
        "prediction": prediction_context(data, palette),
        "probes": {"headings": headings, "lines": probe_lines},
        "pretraining": {
            "shown": shown,
            "folded": folded,
            "backbones": {curve.backbone for curve in data.pretraining},
        },
        "legend": legend(data),
        "provenance": provenance(data),
        "command": data.command,
    }


def warnings(data: ReportData) -> list[str]:
    """What a reader must know before the numbers."""
    found = []
    total = len(data.rows)
    for status, text in NOT_DONE.items():
        n = sum(row.status == status for row in data.rows)
        if n:
            found.append(f"{n} of {total} fine-tunings {text}")
    dirty = sum(row.dirty and row.status == "done" for row in data.rows)
    if dirty:
        found.append(f"{dirty} of {total} fine-tunings from modified (uncommitted) code, marked †")
    return found


def paper_context(data: ReportData) -> Plot:
    """The comparison as the papers print it."""
    table = paper_table(data)
    return {
        "groups": table.groups,
        "lines": [
            {
                "name": line_name(table, line),
                "backbone": None if line.source else line.name,
                "published": line.source is not None,
                "source": line.source,
                "seeds": line.seeds,
                "cells": [
                    {
                        "mean": cell.mean if cell else DASH,
                        "std": cell.std if cell else None,
                        "best": bool(cell and cell.best),
                        "mark": MARK if cell and cell.significant else "",
                    }
                    for cell in line.cells
                ],
            }
            for line in table.lines
        ],
        "notes": paper_notes(data, table),
    }


def prediction_context(data: ReportData, palette: Mapping[str, str]) -> Plot:
    """Scatters of cheap numbers against AP, and the answer in a sentence."""
    found = predictions(data)
    return {
        "answer": answer(found),
        "shown": [_scatter(entry, palette) for entry in found if entry.shown],
        "folded": [_scatter(entry, palette) for entry in found if not entry.shown],
    }


def _scatter(found: Prediction, palette: Mapping[str, str]) -> Plot:
    label = f"{found.predictor} and {found.metric}, {found.task}"
    svg = scatter_plot(found.places, palette, (found.predictor, found.metric))
    return {"label": label, "note": found.note, "svg": inline_svg(svg, label)}


def task_context(data: ReportData, summary: TaskSummary, palette: Mapping[str, str]) -> Plot:
    """A task's tables, plots and pictures."""
    decimals = task_decimals(summary)
    task = summary.task
    curves = [curve for curve in data.finetuning if curve.task == task.name]
    shown, folded = curve_plots(curves, lambda keys: finetuning_keys(keys, task.metrics), palette)
    return {
        "title": task.title,
        "metrics": [metric_label(metric) for metric in task.metrics],
        "lines": [_line(summary, line, decimals) for line in summary.backbones],
        "failures": [failure_text(row) for row in unfinished(summary, "failed")],
        "bars": [_bars(summary, i, palette) for i in range(len(task.metrics))],
        "curves": {"shown": shown, "folded": folded},
        "pictures": pictures(summary),
        "further": [
            _further(title, found) for title, found in further_summaries(data, task).items()
        ],
        "rows": [
            _row(row, task.metrics, decimals) for line in summary.backbones for row in line.rows
        ],
    }


def _further(title: str, summary: TaskSummary) -> Plot:
    """A folded table of more metrics."""
    decimals = task_decimals(summary)
    return {
        "title": title,
        "metrics": [metric_label(metric).replace("AP-", "") for metric in summary.task.metrics],
        "lines": [
            {
                "backbone": line.backbone,
                "cells": [
                    {"text": spread_text(cell.spread, decimals), "best": cell.best}
                    for cell in line.cells
                ],
            }
            for line in summary.backbones
        ],
    }


def _line(summary: TaskSummary, line: BackboneSummary, decimals: int) -> Plot:
    return {
        "backbone": line.backbone,
        "seeds": seeds_text(line),
        "state": state_text(line),
        "failed": "failed" in line.counts,
        "dirty": line.dirty,
        "verdict": verdict_text(summary.task, line),
        "cells": [_cell(cell, line.done, decimals) for cell in line.cells],
    }


def _cell(cell: Cell, done: int, decimals: int) -> Plot:
    n = cell.spread.n if cell.spread else 0
    return {
        "text": spread_text(cell.spread, decimals),
        "short_of": f"n = {n}" if 0 < n < done else "",
        "difference": difference_text(cell.difference, decimals) if cell.difference else "",
        "p": p_text(cell.p),
        "verdict": cell.verdict.replace("/", ""),
        "best": cell.best,
    }


def _row(row: ResultRow, metrics: Sequence[str], decimals: int) -> Plot:
    done = row.status == "done"
    values = [finite(row.metrics.get(metric)) if done else None for metric in metrics]
    return {
        "backbone": row.backbone,
        "seed": row.seed,
        "status": row.status,
        "dirty": row.dirty,
        "values": [number(value, decimals) for value in values],
        "time": duration(row.wall_time_s),
        "run_dir": row.run_dir,
        "signature": row.signature,
        "gpu_hours": gpu_hours(row.wall_time_s, row.num_gpus),
        "commit": row.commit or "unknown commit",
        "command": row.command,
        "config": json.dumps(row.config, indent=2, ensure_ascii=False, default=str),
    }


# --- plots ------------------------------------------------------------------------------------


def _bars(summary: TaskSummary, column: int, palette: Mapping[str, str]) -> Plot:
    cells = {line.backbone: line.cells[column] for line in summary.backbones}
    label = metric_label(summary.task.metrics[column])
    return {"label": label, "note": "", "svg": inline_svg(bar_plot(cells, palette), label)}


def curve_plots(
    curves: Sequence[Curve],
    order: Callable[[list[str]], tuple[list[str], list[str]]],
    palette: Mapping[str, str],
) -> tuple[list[Plot], list[Plot]]:
    """(shown, folded away) plots of everything the curves hold, one per key."""
    logged = {key for curve in curves for point in curve.points for key in point}
    shown, folded = order(sorted(logged - POSITIONS))
    found: tuple[list[Plot], list[Plot]] = ([], [])
    for keys, plots in zip((shown, folded), found, strict=True):
        for key in keys:
            series, most = curve_series(curves, key, palette)
            if series:
                note = f"means of up to {most} logged points" if most > 1 else ""
                label = metric_label(key)
                svg = inline_svg(line_plot(series), f"{label} over steps")
                plots.append({"label": label, "note": note, "svg": svg})
    return found


def pretraining_keys(keys: list[str]) -> tuple[list[str], list[str]]:
    """The loss first, then whatever is not housekeeping; the rest folded away."""
    folded = [key for key in keys if HOUSEKEEPING & set(re.split(r"[/_]", key))]
    return sorted((k for k in keys if k not in folded), key=lambda k: k not in LOSSES), folded


def finetuning_keys(keys: list[str], metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """The total loss and the task's metrics; single losses and the rest folded away."""
    shown = [key for key in (*LOSSES, *metrics) if key in keys]
    return shown, [key for key in keys if key not in shown]


def inline_svg(svg: bytes, label: str) -> Markup:
    """A plot's SVG as an element of an HTML page, scaled by the page's style."""
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    box = re.search(r'viewBox="[-0-9. ]+"', opening)
    assert box is not None
    head = Markup('<svg {} role="img" aria-label="{}">').format(Markup(box[0]), label)
    return head + Markup(rest.replace("xlink:href", "href").strip())
