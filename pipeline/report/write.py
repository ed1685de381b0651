"""The report of a plan, written to its folder: each file whole or not at all."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from pipeline.plan.plan import Plan
from pipeline.report.collect import MADE_FROM, collect, report_dir, report_key
from pipeline.report.data import ReportData, finite
from pipeline.report.html import html
from pipeline.report.paper import latex, paper_markdown
from pipeline.report.schema import results_json, schema_json
from pipeline.report.text import markdown
from pipeline.stages.files import read_json, write_json


def make_report(plan: Plan) -> None:
    """Write the report unless one that exists was made from the same results."""
    folder = report_dir(plan)
    key = report_key(plan)
    marker = folder / MADE_FROM
    if marker.exists() and (folder / "index.html").exists() and read_json(marker) == key:
        return
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    write_report(collect(plan), folder)
    write_json(marker, key)


def write_report(data: ReportData, directory: Path) -> Path:
    """Write the page, Markdown, LaTeX, CSV, JSON and its schema; return index.html's path.

    Everything is rendered before the first file is touched, so that data that cannot be rendered
    leaves an older report as it was.

    Raises:
        ValueError: the data contradicts itself.
        OSError: a file cannot be written; no temporary file is left.
    """
    texts = {
        "results.json": results_json(data),
        "results.schema.json": schema_json(),
        "table.tex": latex(data),
        "results.csv": results_csv(data),
        "report.md": markdown(data, paper_markdown(data)),
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
