"""Runs as they are read: refused where they differ, are given twice or cannot be."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.report.merge import merge
from pipeline.report.sources import differing, read_runs, results_file
from tests.pipeline.report.cases import COCO, VOC
from tests.pipeline.report.several_runs import IDENTITY, PROBE, as_older, data, edit, probe, write


def run(folder: Path, value: float = 20.0, **more: object) -> Path:
    return write(folder, data({"ours": {0: value}}, {"ours": "1" * 64}, **more))


def with_identity(folder: Path, identity: dict) -> Path:
    return run(folder, 21.0, task=replace(VOC, identity=identity))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"SOLVER": {"MAX_ITER": 200}}, "SOLVER.MAX_ITER: A 100, B 200"),
        ({"num_gpus": 8}, "num_gpus: A nothing, B 8"),
        ({"data": {"TEST": [{"digest": "c" * 64}]}},
         f"data.TEST.0.digest: A '{'a' * 64}', B '{'c' * 64}'"),
        ({"data": {"TEST": []}}, "data.TEST"),
        ({"finetune_version": 3}, "finetune_version: A nothing, B 3"),
    ],
)  # fmt: skip
def test_a_task_that_differs_is_refused_by_what_differs(
    tmp_path: Path, change: dict, told: str
) -> None:
    a, b = run(tmp_path / "a"), with_identity(tmp_path / "b", IDENTITY | change)
    with pytest.raises(ValueError, match="task voc is not the same in") as error:
        merge(read_runs([a, b]))
    text = str(error.value)
    assert f"in A ({a}) and B ({b}): " in text and told in text and len(text.splitlines()) == 1
    assert text.endswith("leave one out, or give it another name in its config and make that "
                         "report anew")  # fmt: skip


def test_many_differences_are_counted(tmp_path: Path) -> None:
    keys = {f"KEY_{number}": number for number in range(20)}
    a, b = run(tmp_path / "a"), with_identity(tmp_path / "b", IDENTITY | keys)
    (line,) = differing(read_runs([a, b]))
    assert "KEY_0: A nothing, B 0; " in line and "; and 14 more; " in line


def test_metrics_and_probes_that_differ_are_refused(tmp_path: Path) -> None:
    a = as_older(run(tmp_path / "a"))
    task = replace(COCO, name="voc", identity=IDENTITY)
    content = data({"ours": {0: 1.0}}, {"ours": "1" * 64})
    rows = (replace(content.rows[0], metrics={"bbox/AP": 1.0, "segm/AP": 2.0}),)
    b = write(tmp_path / "b", replace(content, tasks=(task,), rows=rows))
    (line,) = differing(read_runs([a, b]))
    assert "metrics: A 'bbox/AP50, bbox/AP, bbox/AP75', B 'bbox/AP, segm/AP'" in line
    more = {"probes": (probe("ours", 60.0, "3"),)}
    c = run(tmp_path / "c", **more)
    other = {"knn": PROBE | {"knn": {"k": 20}}}
    d = run(tmp_path / "d", **more, probe_identities=other)
    (line,) = differing(read_runs([c, d]))
    assert "probe knn is not the same in" in line and "knn.k: A 5, B 20" in line


def test_a_run_is_named_by_its_folder_its_report_or_its_file(tmp_path: Path) -> None:
    file = run(tmp_path / "a") / "report" / "results.json"
    for path in (tmp_path / "a", file.parent, file):
        assert results_file(path) == file
    with pytest.raises(ValueError, match=r"b/report/results\.json: no such file; wanted the fold"):
        read_runs([tmp_path / "b"])


def test_a_run_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    a = run(tmp_path / "a")
    (tmp_path / "link").symlink_to(a)
    shutil.copytree(a, tmp_path / "copy")
    shutil.copy(a / "report" / "results.json", tmp_path / "theirs.json")
    again = [a, a / "report", tmp_path / "link", tmp_path / "copy", tmp_path / "theirs.json"]
    with pytest.raises(ValueError, match="wanted each run once") as error:
        read_runs([a, *again])
    assert str(error.value).splitlines() == [
        f"{path}: is the same as A ({a}); wanted each run once" for path in again
    ]


def test_a_copy_whose_report_was_made_anew_is_the_same_run(tmp_path: Path) -> None:
    a = run(tmp_path / "a")
    shutil.copytree(a, tmp_path / "copy")

    def made_anew(content: dict) -> None:
        content.update(command="another", pipeline="other", remarks=["the data are not there"])

    copy = edit(tmp_path / "copy", made_anew)
    with pytest.raises(ValueError, match=r"copy: is the same as A \(.*wanted each run once"):
        read_runs([a, copy])
    edit(copy, lambda content: content["origins"][0].update(signature="f" * 16))
    assert len(read_runs([a, copy])) == 2
    assert len(read_runs([as_older(a), as_older(copy)])) == 2  # of which nobody knows


def test_marks_go_on_after_z(tmp_path: Path) -> None:
    runs = read_runs([run(tmp_path / str(n), 20.0 + n) for n in range(28)])
    assert [each.mark for each in runs[24:]] == ["Y", "Z", "A1", "B1"]


def metrics(**values: object):
    return lambda content: content["rows"][0].update(metrics=values)


def rows(**values: object):
    return lambda content: content["rows"][0].update(values)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (metrics(**{"bbox/AP": -1}), "ours: bbox/AP is -1, wanted 0 to 100 percent, or null"),
        (metrics(**{"bbox/AP-cat": 101}), "bbox/AP-cat is 101, wanted 0 to 100 percent"),
        (metrics(other=1e300), "other is 1e+300, wanted -1e+12 to 1e+12"),
        (metrics(**{"bbox/AP": "<b>"}), "rows.0.metrics.bbox/AP: Input should be a valid number"),
        (rows(backbone=""), ", voc, 0: a name is empty"),
        (rows(backbone="=HYPERLINK(1)"), "=HYPERLINK(1): wanted a text that is no formula of a"),
        (metrics(**{"@x": 1}), "@x: wanted a text that is no formula"),
        (lambda content: content["tasks"][0].update(rule="=1+1"), "=1+1: wanted a text that is"),
        (rows(seed=0.5), "rows.0.seed: "),
        (rows(more=1), "rows.0.more: Extra inputs are not permitted"),
        (lambda content: content["rows"].append(content["rows"][0]), "ours, voc, 0: given twice"),
        (lambda content: content["tasks"].append(content["tasks"][0]), "voc: given twice"),
        (lambda content: content.pop("rows"), "rows: Field required"),
        (lambda content: content.update({"a\nb": 1}), "a b: Extra inputs"),
        (lambda content: content.update(sources=[dict.fromkeys(("mark", "pipeline", "sha256"), "")
                                                 | {"path": "runs/x"}]),
         "is a report of several runs already; give these themselves: runs/x"),
    ],
)  # fmt: skip
def test_what_a_stranger_wrote_is_refused_in_one_line(tmp_path: Path, change, told: str) -> None:
    a = edit(run(tmp_path / "a"), change)
    with pytest.raises(ValueError, match=r"a") as error:
        read_runs([a])
    text = str(error.value)
    assert told in text and str(a) in text and len(text.splitlines()) == 1
