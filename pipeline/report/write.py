"""The report of a plan, written to its folder: each file whole or not at all."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from pipeline.plan.plan import Plan
from pipeline.report.collect import MADE_FROM, collect, report_dir, report_key
from pipeline.report.data import ReportData, results_json, schema_json
from pipeline.report.html import html
from pipeline.report.tables import latex, markdown, results_csv
from pipeline.stages.files import atomic_path, read_json, write_json


def make_report(plan: Plan) -> None:
    """Write the report unless one that exists was made from the same results."""
    folder = report_dir(plan)
    key = report_key(plan)
    marker = folder / MADE_FROM
    if marker.exists() and (folder / "index.html").exists() and read_json(marker) == key:
        return
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
        "report.md": markdown(data),
        "index.html": html(data),
    }
    # a lone surrogate (a file name that is no UTF-8) becomes a question mark
    contents = {name: text.encode("utf-8", errors="replace") for name, text in texts.items()}
    write_files(directory, contents)
    return directory / "index.html"


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    """Write all files under temporary names beside their places, then rename them."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as renames:
        for name in reversed(files):  # the stack renames the last one first
            renames.enter_context(atomic_path(directory / name)).write_bytes(files[name])
