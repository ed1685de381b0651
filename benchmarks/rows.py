"""A table that is printed row by row, as soon as each is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print `title`, the names of the columns, and each row when it comes; the first is text."""
    print(title)
    widths = [52, *[max(14, len(name) + 2) for name in columns[1:]]]
    print(_line(columns, widths), flush=True)
    for row in rows:
        print(_line(row, widths), flush=True)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{first.strip():<{widths[0]}}" + "".join(others)
