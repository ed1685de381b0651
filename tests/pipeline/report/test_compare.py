"""Two pipelines' folders compared: configs, commits and numbers."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.report.compare import compare, number_changes, read_finished
from pipeline.report.data import ReportData, ResultRow, TaskInfo
from pipeline.report.write import write_report
from pipeline.stages.files import sha256_of, write_json

TASK = TaskInfo("voc", "VOC", ("bbox/AP",))


def result(seed, value):
    return ResultRow(
        "ours", "voc", seed, "done", {"bbox/AP": value}, None, None, (), (), None, "run", False, "0"
    )


def pipeline(folder: Path, values: dict[int, float], *, lr: float, commit: str = "c0") -> Path:
    rows = tuple(result(seed, value) for seed, value in values.items())
    data = ReportData("demo", ("ours",), (TASK,), None, rows, (), (), (), {}, "run")
    write_report(data, folder / "report")
    run_dir = folder / "pretrain" / "ours-0123456789abcdef"
    run_dir.mkdir(parents=True)
    write_json(run_dir / "config.json", {"config": {"optimizer": {"lr": lr}}, "inputs": {}})
    write_json(run_dir / "manifest.json", {"provenance": {"code": {"commit": commit}}})
    sha = sha256_of(run_dir / "manifest.json")
    write_json(
        folder / "report" / "made_from.json",
        [["pretrain/ours", "done", None, sha], ["convert/ours", "missing", None, None]],
    )
    return folder


def test_identical_pipelines(tmp_path):
    a = pipeline(tmp_path / "a", {0: 1.0, 1: 2.0}, lr=0.1)
    b = pipeline(tmp_path / "b", {0: 1.0, 1: 2.0}, lr=0.1)
    text = compare(a, b)
    assert "All 1 numbers are identical." in text and "no stage's config differs" in text


def test_configs_that_cannot_be_read_are_not_called_equal(tmp_path):
    folders = [pipeline(tmp_path / name, {0: 1.0}, lr=0.1) for name in "ab"]
    for folder in folders:
        shutil.rmtree(folder / "pretrain")
    text = compare(*folders)
    assert "no stage's config differs" not in text
    assert text.count(": the folders of its stages are gone, and their configs with them") == 2


def test_a_changed_key_and_changed_numbers(tmp_path):
    a = pipeline(tmp_path / "a", {0: 10.0, 1: 20.0}, lr=0.1)
    b = pipeline(tmp_path / "b", {0: 19.0, 1: 31.0}, lr=0.2, commit="c1")
    text = compare(a, b)
    assert "- pretrain/ours: config.optimizer.lr: A 0.1, B 0.2" in text
    assert "- commit: A c0, B c1" in text
    assert "1 of 1 numbers changed, 0 of them with p < 0.05" in text
    assert "| ours | voc | Box AP | 15.00 ± 7.07 | 25.00 ± 8.49 | +10.00 ± 1.41 | 0.063 |" in text


def test_numbers_of_one_side_only(tmp_path):
    a = read_finished(pipeline(tmp_path / "a", {0: 10.0}, lr=0.1))
    nothing = a.results.model_copy(update={"rows": (), "summary": ()})
    (change,) = number_changes(a.results, nothing)
    assert (change.a.mean, change.b, change.difference) == (10.0, None, None)


def test_numbers_that_only_one_has_have_not_changed(tmp_path):
    a, b = (pipeline(tmp_path / name, {0: 10.0}, lr=0.1) for name in "ab")
    path = b / "report" / "results.json"
    path.write_text(path.read_text("utf-8").replace('"voc"', '"coco"'), encoding="utf-8")
    text = compare(a, b)
    assert "\n\nNo number is in both; 2 are of one of them alone.\n\n" in text
    assert "## Numbers of one alone" in text and "changed" not in text


def test_a_folder_without_a_report_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"report/results\.json: no such file; wanted the folder"):
        compare(tmp_path, tmp_path)


def test_results_of_another_shape_are_refused(tmp_path):
    a = pipeline(tmp_path / "a", {0: 10.0}, lr=0.1)
    path = a / "report" / "results.json"
    content = json.loads(path.read_text("utf-8"))
    del content["rows"][0]["seed"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"not results of this version: rows\.0\.seed"):
        compare(a, a)


def test_an_older_run_of_the_same_stage_is_left_out(tmp_path):
    a = pipeline(tmp_path / "a", {0: 10.0}, lr=0.1)
    old = a / "pretrain" / "ours-ffffffffffffffff"
    old.mkdir()
    write_json(old / "config.json", {"config": {"optimizer": {"lr": 9.0}}, "inputs": {}})
    write_json(old / "manifest.json", {"provenance": {}})
    assert read_finished(a).configs["pretrain/ours"]["config"]["optimizer"]["lr"] == 0.1
