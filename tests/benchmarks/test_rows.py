"""Tables of benchmarks: one line a row, printed as it comes, in columns; then as JSON."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.rows import Table, print_rows, write_tables


def test_rows_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []

    def rows() -> Iterator[list[str]]:
        printed.append(capsys.readouterr().out)
        yield ["first", 1.04, 2]
        printed.append(capsys.readouterr().out)
        yield ["second", None, 20]

    columns_ = ("case", "ms:.1f", "a column of its own width:.2f")
    table = print_rows("A title", columns_, rows(), device="x")
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
    assert first.startswith("first  ") and first.split() == ["first", "1.0", "2.00"]
    assert second.split() == ["second", "-", "20.00"] and second.endswith("          20.00")
    assert table == Table("A title", {"device": "x"}, [
        {"case": "first", "ms": 1.04, "a column of its own width": 2},
        {"case": "second", "ms": None, "a column of its own width": 20},
    ])  # fmt: skip


def test_the_json_has_machine_versions_options_and_numbers(tmp_path: Path) -> None:
    table = Table("A title", {"device": "x"}, [{"case": "first", "ms": 1.04}])
    write_tables(tmp_path / "a.json", "step", {"rounds": 3, "threads": None}, [table, table])
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content["benchmark"] == "step"
    assert content["options"] == {"rounds": 3, "threads": None}
    assert content["packages"]["torch"] == importlib.metadata.version("torch")
    assert content["python"] == platform.python_version() and content["code"]["commit"]
    assert content["num_cpus"] == len(os.sched_getaffinity(0)) and content["cpu"]
    assert content["gpus"] == [] or content["gpus"][0] == torch.cuda.get_device_name(0)
    rows = [{"case": "first", "ms": 1.04}]
    assert content["tables"] == [{"title": "A title", "about": {"device": "x"}, "rows": rows}] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
