"""Tables of benchmarks: printed row by row as each is measured, then written as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.stages.files import write_json
from pipeline.stages.provenance import hardware, origin


@dataclass(frozen=True)
class Table:
    """What was measured: numbers as they are, by column; `about` holds what is true of all rows."""

    title: str
    about: dict[str, Any]
    rows: list[dict[str, Any]]


def print_rows(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], **about: Any
) -> Table:
    """Print `title`, the names of the columns, and each row when it comes; return them.

    Args:
        title: the line above.
        columns: names, the first of text; `views/s:,.0f` is one whose values print as `{:,.0f}`.
        rows: a value for each column; None, where nothing was measured, is printed as `-`.
        about: what the JSON says of all rows beside the title.
    """
    print(title)
    names, _, formats = zip(*(column.partition(":") for column in columns), strict=True)
    widths = [52, *[max(14, len(name) + 2) for name in names[1:]]]
    print(_line(names, widths), flush=True)
    kept = []
    for row in rows:
        kept.append(dict(zip(names, row, strict=True)))
        cells = ["-" if x is None else format(x, f) for x, f in zip(row, formats, strict=True)]
        print(_line(cells, widths), flush=True)
    return Table(title, about, kept)


def write_tables(
    path: Path, benchmark: str, options: Mapping[str, Any], tables: Iterable[Table]
) -> None:
    """Write what a benchmark printed as JSON, with the code, versions and machine behind it."""
    content = {"benchmark": benchmark, "options": dict(options), **origin(), **hardware()}
    write_json(path, content | {"tables": [asdict(table) for table in tables]})


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{first.strip():<{widths[0]}}" + "".join(others)
