"""`report A B ...`: several runs in one table, and what differs between two."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipeline.commands.local import tell
from pipeline.commands.result_tables import show_tables
from pipeline.plan.place import folder_fault
from pipeline.report.collect import MADE_FROM
from pipeline.report.compare import compare
from pipeline.report.merge import merge
from pipeline.report.sources import RESULTS, read_runs
from pipeline.report.text import findings, source_notes, warnings
from pipeline.report.write import write_report


def report_several(paths: Sequence[Path], console: Console, output_dir: Path | None = None) -> int:
    """Print the tables of several runs, and write them to a folder if one is named.

    Of two pipelines what differs between them is printed first, whether or not they fit into one
    table.

    Raises:
        ValueError: a run cannot be read, one is given twice, tasks of one name differ, or the
            folder is a pipeline's.
    """
    if len(paths) < 2:
        raise ValueError(
            f"report: {paths[0]} alone: wanted two runs or more (folders, or files results.json), "
            "or the --config-file of one"
        )
    runs = read_runs(paths)
    if output_dir is not None:
        is_report = (output_dir / MADE_FROM).exists()
        other = f"{output_dir}: is the report of a pipeline; give another --output-dir"
        if output_dir.exists() and not output_dir.is_dir():
            raise ValueError(f"{output_dir}: is a file, wanted a folder; give another --output-dir")
        if fault := other if is_report else folder_fault(output_dir, "report", "--output-dir"):
            raise ValueError(fault)
    if len(paths) == 2 and all((path / RESULTS).is_file() for path in paths):
        print(compare(*paths))
    words = ["python", "tools/run_pipeline.py", "report", *map(str, paths)]
    words += ["--output-dir", str(output_dir)] if output_dir else []
    data = merge(runs, shlex.join(words))
    tell(console, findings(data) + warnings(data))
    show_tables(data, console)
    tell(console, source_notes(data))
    if output_dir is None:
        tell(console, ["nothing is written; --output-dir FOLDER writes the page and all tables"])
    else:
        page = write_report(data, output_dir).absolute()
        console.print(f"report: {page}", soft_wrap=True, highlight=False)
    return 0
