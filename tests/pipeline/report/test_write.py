"""The files of a report: which there are, and what is left when one cannot be written."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeline.plan.build import load_plan
from pipeline.report.collect import collect
from pipeline.report.write import make_report, write_files, write_report
from pipeline.stages.run_folder import prepare, write_manifest
from tests.pipeline.report.cases import case

CONFIG = Path("configs/tiny.yaml")
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


def edit(path, change):
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    change(content)
    Path(path).write_text(yaml.safe_dump(content), encoding="utf-8")


@pytest.fixture
def reported(fakes):
    """Finish one stage without running it, with a picture, and make the report."""
    for entry in load_plan(CONFIG, ["seeds=[0]"]).stages:
        if entry.name == "finetune/random--voc--seed0":
            prepare(entry)
            (entry.run_dir / "out.txt").write_text("x", encoding="utf-8")
            (entry.run_dir / "pictures").mkdir()
            Image.new("RGB", (8, 8), "red").save(entry.run_dir / "pictures" / "0-detections.jpg")
            job = json.loads((entry.run_dir / "job.json").read_text("utf-8"))
            write_manifest(entry.run_dir, job, {"bbox/AP": 42.0}, {})
    return made()


def made():
    make_report(load_plan(CONFIG, ["seeds=[0]"]))
    return {path.name: path.stat().st_mtime_ns for path in Path("runs/tiny/report").iterdir()}


def new_picture():
    [path] = Path("runs").rglob("*-detections.jpg")
    Image.new("RGB", (8, 8), "blue").save(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda: edit(CONFIG, lambda c: c["tasks"][0].update(title="Another title")),
        lambda: edit(
            CONFIG, lambda c: c["tasks"][0].update(reference="voc-07-faster-rcnn-r50-c4-9k")
        ),
        lambda: Path("runs/tiny/report/results.csv").write_text("edited", encoding="utf-8"),
        lambda: Path("runs/tiny/report/table.tex").unlink(),
        lambda: Path("runs/tiny/report/made_from.json").write_text("{", encoding="utf-8"),
        lambda: next(Path("runs").rglob("*-detections.jpg")).unlink(),
        new_picture,
    ],
)
def test_a_report_is_made_again_when_what_it_shows_has_changed(reported, change):
    assert made() == reported
    change()
    again = made()
    assert set(again) == {*FILES, "made_from.json"}
    assert all(again[name] != reported[name] for name in FILES)
    assert made() == again


def test_the_settings_of_a_row_are_those_of_the_run_that_made_it(reported):
    edit("configs/voc.yaml", lambda c: c.update(VIS_PERIOD=7))
    edit(CONFIG, lambda c: c["datasets"]["my_voc"].update(root=str(Path("data/voc").absolute())))
    [row] = [row for row in collect(load_plan(CONFIG, ["seeds=[0]"])).rows if row.status == "done"]
    job = json.loads((Path(row.run_dir) / "job.json").read_text("utf-8"))
    config = json.loads((Path(row.run_dir) / "config.json").read_text("utf-8"))
    assert row.config["settings"] == job["settings"]
    assert row.config["signature covers"] == config
    assert "VIS_PERIOD" not in json.dumps(row.config)
    (Path(row.run_dir) / "config.json").unlink()
    rows = collect(load_plan(CONFIG, ["seeds=[0]"])).rows
    assert [row.config["signature covers"] for row in rows if row.status == "done"] == [None]
