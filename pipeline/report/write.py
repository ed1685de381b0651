"""The report of a plan, written to its folder: each file whole or not at all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from pipeline.plan.plan import Plan
from pipeline.report.collect import MADE_FROM, collect, report_dir, report_key
from pipeline.report.data import ReportData, results_json, schema_json
from pipeline.report.tables import latex, markdown, results_csv
from pipeline.stages.files import atomic_path, read_json, sha256_of, write_json
from pipeline.tracking.child import track_report


def page(data: ReportData) -> str:
    """Return `index.html`; plots are imported here, since a plan and a status draw none."""
    module: Any = importlib.import_module("pipeline.report.html")
    return str(module.html(data))


WRITERS: dict[str, Callable[[ReportData], str]] = {
    "results.json": results_json,
    "results.schema.json": lambda _: schema_json(),
    "table.tex": latex,
    "results.csv": results_csv,
    "report.md": markdown,
    "index.html": page,
}


def make_report(plan: Plan) -> None:
    """Write the report unless the files of an earlier one are what would be written now.

    `made_from.json` beside them holds the stages, a digest of the source, and of every file.
    Trackers show it then.
    """
    folder, data = report_dir(plan), collect(plan)
    marker, key, is_new = folder / MADE_FROM, report_key(plan, data), True
    with suppress(OSError, ValueError, TypeError, LookupError):
        *kept, (_, files) = read_json(marker)
        same = (sha256_of(folder / name) == files[name] for name in WRITERS)
        is_new = kept != key or not all(same)
    if is_new:
        marker.unlink(missing_ok=True)
        write_report(data, folder)
        write_json(marker, [*key, ["files", {name: sha256_of(folder / name) for name in WRITERS}]])
    track_report(plan.config.tracking.trackers(plan.config.name), folder)


def write_report(data: ReportData, directory: Path) -> Path:
    """Write the page, Markdown, LaTeX, CSV, JSON and its schema; return index.html's path.

    Everything is rendered before the first file is touched, so that data that cannot be rendered
    leaves an older report as it was.

    Raises:
        ValueError: the data contradicts itself.
        OSError: a file cannot be written; no temporary file is left.
    """
    texts = {name: write(data) for name, write in WRITERS.items()}
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
