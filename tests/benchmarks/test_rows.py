"""Tables of benchmarks: one line a row, printed as it comes, in columns."""

from collections.abc import Iterator

import pytest

from benchmarks.rows import print_rows


def test_rows_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []

    def rows() -> Iterator[list[str]]:
        printed.append(capsys.readouterr().out)
        yield ["first", "1.0", "2.00"]
        printed.append(capsys.readouterr().out)
        yield ["second", "10.0", "20.00"]

    print_rows("A title", ("case", "ms", "a column of its own width"), rows())
    title, columns = printed[0].splitlines()
    assert title == "A title" and columns.split() == [
        "case",
        "ms",
        "a",
        "column",
        "of",
        "its",
        "own",
        "width",
    ]
    (first,) = printed[1].splitlines()
    (second,) = capsys.readouterr().out.splitlines()
    assert len(columns) == len(first) == len(second) == 52 + 14 + 27
    assert first.startswith("first  ") and second.endswith("          20.00")
