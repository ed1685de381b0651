"""Several runs in one table: what counts as the same, and what is compared."""

import csv
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.commands.result_tables import show_tables
from pipeline.report.data import ReportData, results_json, summarise
from pipeline.report.html import html
from pipeline.report.merge import merge
from pipeline.report.results import Results
from pipeline.report.sources import read_runs
from pipeline.report.tables import latex, markdown, results_csv
from pipeline.report.text import findings, source_notes
from tests.pipeline.report.cases import EVIL, PUBLISHED_VOC, VOC
from tests.pipeline.report.several_runs import IDENTITY, as_older, data, edit, probe, write

RANDOM = {0: 10.0, 1: 12.0}


def merged(*folders: Path) -> ReportData:
    return merge(read_runs(folders), "the command")


def cells(report: ReportData, metric: str = "bbox/AP") -> dict:
    (summary,) = summarise(report)
    return {
        line.backbone: cell
        for line in summary.backbones
        for cell in line.cells
        if cell.metric == metric
    }


def test_backbones_of_one_name_and_other_bytes_stay_apart(tmp_path: Path) -> None:
    a = write(tmp_path / "a", data({"random": RANDOM, "ours": {0: 20.0, 1: 23.0}},
                                   {"random": None, "ours": "1" * 64}))  # fmt: skip
    b = write(tmp_path / "b", data({"ours": {0: 30.0, 2: 40.0}}, {"ours": "2" * 64}, "theirs"))
    report = merged(a, b)
    assert report.backbones == ("random (A)", "ours (A)", "ours (B)")
    assert report.baseline == "random (A)" and report.pipeline == "demo, theirs"
    by_name = cells(report)
    assert by_name["ours (A)"].values == ((0, 20.0), (1, 23.0))
    assert by_name["ours (B)"].difference.n == 1  # of the seeds in common
    assert report.remarks[0] == (
        "ours of A and ours of B stay apart: they started from other files: "
        "backbone.pkl 1111111111, and backbone.pkl 2222222222"
    )
    (summary,) = summarise(report)
    assert [line.planned for line in summary.backbones] == [2, 2, 2]  # nobody planned the others'


def test_the_same_backbone_has_the_seeds_of_all_runs_once(tmp_path: Path) -> None:
    same = {"random": None, "ours": "1" * 64}
    a = write(tmp_path / "a", data({"random": RANDOM, "ours": {0: 20.0, 1: 23.0}}, same))
    b = write(
        tmp_path / "b", data({"random": {0: 10.0, 3: 11.0}, "ours": {1: 23.0, 2: 26.0}}, same)
    )
    report = merged(a, b)
    assert report.backbones == ("random (A, B)", "ours (A, B)")
    assert cells(report)["ours (A, B)"].values == ((0, 20.0), (1, 23.0), (2, 26.0))
    assert cells(report)["random (A, B)"].spread.n == 3
    whose = {row.seed: row.source for row in report.rows if row.backbone == "ours (A, B)"}
    assert whose == {0: "A", 1: "A, B", 2: "B"}


@pytest.mark.parametrize("of_probe", [False, True])
def test_the_same_stage_with_other_numbers_is_never_averaged(
    tmp_path: Path, of_probe: bool
) -> None:
    values, same = {"ours": {0: 20.0}}, {"ours": "1" * 64}
    more = [{"probes": (probe("ours", value, "3" * 64),)} for value in (60.0, 60.0 + of_probe)]
    a = write(tmp_path / "a", data(values, same, **more[0]))
    values = {"ours": {0: 20.0 + (not of_probe)}}
    b = write(tmp_path / "b", data(values, same, **more[1]))
    report = merged(a, b)
    assert report.backbones == ("ours (A)", "ours (B)")
    what = "probe has other numbers (knn)" if of_probe else "fine-tuning has other numbers (voc, s"
    assert f"ours of A and ours of B stay apart: the same {what}" in report.remarks[0]


def test_an_unfinished_seed_of_one_run_is_the_others_result(tmp_path: Path) -> None:
    same = {"ours": "1" * 64}
    content = data({"ours": {0: 20.0, 1: 21.0}}, same)
    failed = replace(content.rows[1], status="failed", metrics={}, reason="out of memory", log="x")
    a = write(tmp_path / "a", replace(content, rows=(content.rows[0], failed)))
    b = write(tmp_path / "b", content)
    for folders in ((a, b), (b, a)):
        report = merged(*folders)
        assert report.backbones == ("ours (A, B)",)
        assert [row.status for row in report.rows] == ["done", "done"]
    alone = merged(a, write(tmp_path / "c", data({"x": {0: 1.0}}, {"x": "9"}, "third")))
    assert "ours (A), seed 1: out of memory" in markdown(alone)


def test_a_run_of_an_older_version_is_shown_and_compared_with_none(tmp_path: Path) -> None:
    values, same = {"random": RANDOM, "ours": {0: 20.0, 1: 23.0}}, {"random": None, "ours": "1"}
    old = as_older(write(tmp_path / "old", data(values, same, "theirs")))
    new = write(tmp_path / "new", data(values, same))
    report = merged(old, new)
    assert report.backbones == ("random (A)", "ours (A)", "random (B)", "ours (B)")
    assert report.baseline == "random (B)"  # though another run came first
    by_name = cells(report)
    assert by_name["ours (A)"].spread.mean == by_name["ours (B)"].spread.mean == 21.5
    assert by_name["ours (A)"].difference is None and by_name["ours (A)"].verdict == "n/a"
    assert by_name["ours (B)"].difference.mean == 10.5
    assert [name for name, cell in by_name.items() if cell.best] == ["ours (B)"]
    note = source_notes(report)[1]
    assert note == (
        "Compared with none on Faster R-CNN on VOC, as nothing says that their task is the same: "
        "random (A), ours (A)."
    )
    assert "ours (A)" not in findings(report)[0]
    assert any(text.startswith("A: of an older version, without what") for text in report.remarks)


def test_the_baseline_is_the_first_that_has_a_result(tmp_path: Path) -> None:
    content = data({"ours": {0: 2.0}, "random": {0: 1.0}}, {"random": None, "ours": "1" * 64})
    failed = replace(content.rows[1], status="failed", metrics={}, reason="x")
    a = write(tmp_path / "a", replace(content, rows=(content.rows[0], failed)))
    b = write(tmp_path / "b", data({"random": {0: 7.0}}, {"random": None}, "theirs"))
    c = as_older(write(tmp_path / "c", data({"random": {0: 3.0}}, {"random": None}, "old")))
    report = merged(a, b)
    assert report.backbones == ("ours (A)", "random (A)", "random (B)")
    assert report.baseline == "random (B)"
    assert merged(a, c).baseline == "random (B)"  # which is compared with none, so nothing is
    assert cells(merged(a, c))["ours (A)"].difference is None


def test_two_runs_of_older_versions(tmp_path: Path) -> None:
    values, same = {"random": RANDOM, "ours": {0: 20.0, 1: 23.0}}, {"random": None, "ours": "1"}
    folders = [
        as_older(write(tmp_path / name, data(values, same, name))) for name in ("first", "second")
    ]
    by_name = cells(merged(*folders))
    assert by_name["ours (A)"].difference.mean == 10.5  # within its own run
    assert by_name["ours (B)"].difference is None


def test_tasks_of_one_run_alone_stand_beside_the_others(tmp_path: Path) -> None:
    a = write(tmp_path / "a", data({"ours": {0: 20.0}}, {"ours": "1" * 64}))
    other = replace(VOC, name="shapes", title="Shapes", identity={"SOLVER": {"MAX_ITER": 7}})
    b = write(tmp_path / "b", data({"ours": {0: 5.0}}, {"ours": "1" * 64}, "theirs", other))
    report = merged(a, b)
    assert [task.name for task in report.tasks] == ["voc", "shapes"]
    assert report.backbones == ("ours (A, B)",)
    assert "5.0" in markdown(report) and "20.0" in markdown(report)


def test_versions_and_doubts_are_said(tmp_path: Path) -> None:
    content = data({"ours": {0: 20.0}}, {"ours": "1" * 64})
    doubtful = replace(content.rows[0], dirty=True, doubt="modified (uncommitted) code")
    a = write(tmp_path / "a", replace(content, rows=(doubtful,), remarks=("a set is small",)))
    made_with = {"commit": ("c0",), "torch": ("2.3", "2.1")}
    b = write(tmp_path / "b", data({"x": {0: 1.0}}, {"x": "2"}, "theirs", made_with=made_with))
    report = merged(a, b)
    assert report.remarks == ("the runs differ in torch: A 2.1; B 2.3, 2.1", "A: a set is small")
    assert "ours (A) †" in markdown(report)


def shown(report: ReportData) -> str:
    console = Console(width=200, record=True, file=StringIO())
    show_tables(report, console)
    return console.export_text()


def test_every_format_says_whose_a_number_is(tmp_path: Path) -> None:
    task = replace(PUBLISHED_VOC, identity=IDENTITY)
    a = write(tmp_path / "a", data({"ours": {0: 20.0}}, {"ours": "1" * 64}, task=task))
    b = write(tmp_path / "b", data({"ours": {0: 30.0}}, {"ours": "2" * 64}, "theirs", task))
    report = merged(a, b)
    whose = f"A is {a} (pipeline demo); B is {b} (pipeline theirs)"
    assert source_notes(report)[0].startswith(f"Whose: {whose}. ")
    texts = {"markdown": markdown(report), "latex": latex(report), "html": html(report)}
    for name, text in texts.items():
        assert "ours (A)" in text and "ours (B)" in text, name
        assert f"Whose: {whose}".replace("_", r"\_" if name == "latex" else "_") in text
        assert "CW-RGP, 200 epochs, 4 views" in text  # a published row, once
    assert markdown(report).count("CW-RGP, 200 epochs, 4 views") == 1
    assert "ours (A)" in shown(report) and "ours (B)" in shown(report)
    lines = list(csv.DictReader(StringIO(results_csv(report))))
    assert [line["source"] for line in lines] == [
        f"A is {a} (pipeline demo)", f"B is {b} (pipeline theirs)"
    ]  # fmt: skip
    content = Results.model_validate_json(results_json(report))
    assert [source.path for source in content.sources] == [str(a), str(b)]
    assert [(origin.backbone, origin.source) for origin in content.origins] == [
        ("ours (A)", "A"), ("ours (B)", "B")
    ]  # fmt: skip
    assert "GPU hours" not in texts["html"] and "reproduce</summary>" not in texts["html"]


def test_names_of_a_stranger_are_text_in_every_format(tmp_path: Path) -> None:
    a = write(tmp_path / "a", data({"ours": {0: 20.0}}, {"ours": "1" * 64}))
    b = write(tmp_path / "b", data({"theirs": {0: 30.0}}, {"theirs": "2" * 64}, "theirs"))
    name = f"{EVIL}\n\n\\input{{x}}|[l](u)\x1b[31m\u202e[red]"

    def change(content):
        text = json.dumps(content).replace('"theirs"', json.dumps(name))
        content.update(json.loads(text))
        content["tasks"][0]["title"] = content["remarks"] = [name]
        content["tasks"][0]["title"] = name

    report = merged(edit(b, change), a)
    assert len(report.backbones[0].splitlines()) == 1 and "\u202e" not in report.backbones[0]
    assert "<script>" not in html(report) and "<script>" not in markdown(report)
    assert r"\[l\](u)" in markdown(report) and r"\|" in markdown(report)
    assert r"\input" not in latex(report) and r"\textbackslash{}input\{x\}" in latex(report)
    assert "\x1b[31m" not in shown(report) and "[red]" in shown(report)


def test_one_run_is_as_before() -> None:
    """No format of a single run has a word of this."""
    content = data({"random": RANDOM, "ours": {0: 20.0}}, {"random": None, "ours": "1" * 64})
    for text in (markdown(content), latex(content), html(content), results_csv(content)):
        assert "Whose" not in text and "(A)" not in text
    assert results_csv(content).splitlines()[0].endswith("ap_rule")
