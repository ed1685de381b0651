"""Writes a report's files, each whole or not at all."""

from __future__ import annotations

import csv
import json
import secrets
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from pipeline.report_data import (
    BackboneSummary,
    Difference,
    ReportData,
    Spread,
    TaskSummary,
    finite,
    summarise,
)
from pipeline.report_html import html
from pipeline.report_text import markdown


def write_report(data: ReportData, directory: Path) -> Path:
    """Write index.html, report.md, results.csv and results.json; return index.html's path.

    Everything is rendered before the first file is touched, so that data that cannot be rendered
    leaves an older report as it was.

    Raises:
        ValueError: the data contradicts itself.
        OSError: a file cannot be written; no temporary file is left.
    """
    texts = {
        "results.json": results_json(data),
        "results.csv": results_csv(data),
        "report.md": markdown(data),
        "index.html": html(data),
    }
    write_files(directory, {name: encode(text) for name, text in texts.items()})
    return directory / "index.html"


def encode(text: str) -> bytes:
    """UTF-8; a lone surrogate (a file name that is no UTF-8) becomes a question mark."""
    return text.encode("utf-8", errors="replace")


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write all files under temporary names beside their places, then rename them."""
    directory.mkdir(parents=True, exist_ok=True)
    suffix = f".{secrets.token_hex(4)}.tmp"
    written = {directory / f".{name}{suffix}": directory / name for name in files}
    try:
        for temporary, target in written.items():
            _write(temporary, target, files[target.name])
        for temporary, target in written.items():
            temporary.replace(target)
    finally:
        for temporary in written:
            temporary.unlink(missing_ok=True)


def _write(temporary: Path, target: Path, content: bytes) -> None:
    try:
        temporary.write_bytes(content)
    except OSError as error:  # a write, unlike an open, does not say which file it was
        raise OSError(error.errno, error.strerror, str(target)) from error


def results_json(data: ReportData) -> str:
    """The finished rows and probes, and beside them the unfinished ones and the summary.

    A value that is not finite is null: NaN is no JSON.
    """
    content = {
        "pipeline": data.pipeline,
        "baseline": data.baseline,
        "rows": [
            {
                "backbone": row.backbone,
                "task": row.task,
                "seed": row.seed,
                "metrics": _finite(row.metrics),
            }
            for row in data.rows
            if row.status == "done"
        ],
        "probes": [
            {"backbone": row.backbone, "probe": row.probe, "metrics": _finite(row.metrics)}
            for row in data.probes
        ],
        "unfinished": [
            {
                "backbone": row.backbone,
                "task": row.task,
                "seed": row.seed,
                "status": row.status,
                "reason": row.reason,
                "log": row.log,
            }
            for row in data.rows
            if row.status != "done"
        ],
        "summary": [
            entry
            for summary in summarise(data)
            for line in summary.backbones
            for entry in _summary_entries(summary, line)
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _summary_entries(summary: TaskSummary, line: BackboneSummary) -> list[dict[str, Any]]:
    return [
        {
            "backbone": line.backbone,
            "task": summary.task.name,
            "metric": cell.metric,
            **_spread(cell.spread),
            "planned": line.planned,
            "difference": _difference(cell.difference),
            "verdict": cell.verdict,
        }
        for cell in line.cells
    ]


def _spread(found: Spread | None) -> dict[str, Any]:
    if found is None:
        return {"mean": None, "std": None, "n": 0}
    return {"mean": found.mean, "std": found.std, "n": found.n}


def _difference(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"mean": found.mean, "std": found.std, "n": found.n, "paired": found.paired}


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: finite(value) for name, value in metrics.items()}


def results_csv(data: ReportData) -> str:
    """One line per planned fine-tuning; metric columns are empty where nothing was measured."""
    columns = dict.fromkeys(metric for task in data.tasks for metric in task.metrics)
    columns |= dict.fromkeys(name for row in data.rows for name in sorted(row.metrics))
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["backbone", "task", "seed", "status", *columns])
    for row in data.rows:
        metrics = _finite(row.metrics) if row.status == "done" else {}
        values = [metrics.get(name) for name in columns]
        cells = ["" if value is None else value for value in values]
        writer.writerow([row.backbone, row.task, row.seed, row.status, *cells])
    return buffer.getvalue()
