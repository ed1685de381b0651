"""The files of a report: which there are, and what is left when one cannot be written."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.report.write import write_files, write_report
from tests.pipeline.report.cases import case

FILES = [
    "index.html",
    "report.md",
    "results.csv",
    "results.json",
    "results.schema.json",
    "table.tex",
]


def python(code, *arguments):
    """Run code in another process, with another hash seed."""
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True)


def test_write_report_writes_its_files_and_nothing_else(tmp_path):
    folder = tmp_path / "a" / "report"
    assert write_report(case(), folder) == folder / "index.html"
    assert sorted(p.name for p in folder.iterdir()) == FILES


def test_same_input_same_bytes_in_another_process(tmp_path):
    code = (
        "import runpy, sys, pathlib\n"
        "m = runpy.run_path(sys.argv[1])\n"
        "m['write_report'](m['case'](), pathlib.Path(sys.argv[2]))\n"
    )
    write_report(case(), tmp_path / "here")
    python(code, __file__, tmp_path / "there")
    for name in FILES:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_full_disk_leaves_the_old_report(tmp_path):
    write_report(case(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*index\.html"):
            write_report(case(ours="other"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "c").write_bytes(b"old")
    with pytest.raises(OSError, match="b"):
        write_files(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]
    assert [(tmp_path / name).read_bytes() for name in "ac"] == [b"1", b"old"]


def test_faulty_data_leaves_the_old_report(tmp_path):
    (tmp_path / "index.html").write_bytes(b"old")
    with pytest.raises(ValueError, match="unknown backbone 'nobody'"):
        write_report(replace(case(), baseline="nobody"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]


def test_report_needs_neither_torch_nor_pyplot():
    code = (
        "import sys, pipeline.report.write\n"
        "heavy = {'torch', 'detectron2', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)\n"
    )
    python(code)
