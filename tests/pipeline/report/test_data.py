"""Summaries of tasks, contradictions, and results.json."""

import json
import math

import pytest

from pipeline.report.data import (
    Cell,
    Curve,
    ProbeRow,
    ReportData,
    ResultRow,
    Results,
    TaskInfo,
    TaskSummary,
    check,
    further_summaries,
    main_metrics,
    results_json,
    schema_json,
    summarise,
)
from pipeline.report.statistics import Difference, Spread
from tests.pipeline.report.cases import PUBLISHED_VOC, case, paper_case

VOC = TaskInfo("voc", "VOC", ("bbox/AP50", "bbox/AP"))


def row(backbone, seed, ap=None, *, status="done", task="voc", dirty=False):
    metrics = {} if ap is None else {"bbox/AP50": 2 * ap, "bbox/AP": ap}
    return ResultRow(
        backbone, task, seed, status, metrics, None, None, (), (), None, "run", dirty, "0" * 16
    )


def data(*rows, backbones=("random", "ours"), baseline="random", tasks=(VOC,), **more):
    given = {"probes": (), "pretraining": (), "finetuning": (), "provenance": {}, "command": "run"}
    return ReportData("demo", backbones, tasks, baseline, rows, **(given | more))


def cell(summary: TaskSummary, backbone: str, metric: str = "bbox/AP") -> Cell:
    line = next(line for line in summary.backbones if line.backbone == backbone)
    return next(cell for cell in line.cells if cell.metric == metric)


def test_summary_of_a_complete_task():
    [summary] = summarise(
        data(
            row("random", 0, 10.0),
            row("random", 1, 14.0),
            row("ours", 1, 25.0),
            row("ours", 0, 20.0),
        )
    )
    assert summary.seeds == (0, 1)
    found = cell(summary, "ours")
    assert found.values == ((0, 20.0), (1, 25.0))
    assert found.spread == Spread(22.5, pytest.approx(math.sqrt(12.5)), 2)
    assert found.difference == Difference(10.5, pytest.approx(math.sqrt(0.5)), 2, paired=True)
    assert (found.verdict, found.best) == ("yes", True)
    assert cell(summary, "ours", "bbox/AP50").difference.mean == 21.0
    base = cell(summary, "random")
    assert (base.difference, base.verdict, base.best) == (None, "baseline", False)


def test_failed_rows_count_as_planned_and_their_numbers_are_ignored():
    [summary] = summarise(
        data(row("random", 0, 10.0), row("random", 1, 99.0, status="failed"), row("ours", 0, 12.0))
    )
    random, ours = summary.backbones
    assert (random.done, random.planned, dict(random.counts)) == (1, 2, {"done": 1, "failed": 1})
    assert cell(summary, "random").spread == Spread(10.0, None, 1)
    # a seed nobody planned for this backbone, but others have, is missing
    assert (ours.done, ours.planned, dict(ours.counts)) == (1, 2, {"done": 1, "missing": 1})
    assert cell(summary, "ours").verdict == "n/a"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_not_measured(bad):
    [summary] = summarise(
        data(
            row("random", 0, 10.0),
            row("random", 1, bad),
            row("ours", 0, 12.0),
            row("ours", 1, 13.0),
        )
    )
    assert cell(summary, "random").spread == Spread(10.0, None, 1)
    assert cell(summary, "ours").difference == Difference(2.0, None, 1, paired=True)
    assert summary.backbones[0].done == 2


def test_best_are_all_not_told_apart_from_the_highest_where_another_one_is():
    def best(**values):
        rows = [row(name, seed, ap) for name, each in values.items() for seed, ap in each.items()]
        lines = summarise(data(*rows, backbones=tuple(values), baseline=None))[0].backbones
        return [line.backbone for line in lines if line.cells[1].best]

    high, close, low = {0: 21.0, 1: 22.0, 2: 23.0}, {0: 20.0, 1: 23.0, 2: 21.0}, {0: 1.0, 1: 2.5}
    assert best(low=low, close=close, high=high) == ["close", "high"]
    assert best(close=close, high=high) == []  # nothing is told apart
    assert best(zero={0: 0.0, 1: 0.0}, nought={0: 0.0, 1: 0.0}) == []
    assert best(high=high) == []
    assert best(one={0: 1.0}, other={0: 30.0}) == []  # one seed


def test_without_a_baseline_there_is_no_difference():
    [summary] = summarise(data(row("random", 0, 1.0), row("ours", 0, 2.0), baseline=None))
    assert [c.difference for line in summary.backbones for c in line.cells] == [None] * 4
    assert cell(summary, "ours").verdict == "n/a"


def test_main_metrics_are_the_plain_aps():
    assert main_metrics(TaskInfo("a", "A", ("bbox/AP50", "bbox/AP", "segm/AP", "bbox/APs"))) == (
        "bbox/AP",
        "segm/AP",
    )
    assert main_metrics(TaskInfo("a", "A", ("top1", "top5"))) == ("top1",)


def test_only_finished_rows_make_a_line_dirty():
    done = summarise(data(row("ours", 0, 1.0, dirty=True)))[0].backbones[1]
    failed = summarise(data(row("ours", 0, status="failed", dirty=True)))[0].backbones[1]
    assert (done.dirty, failed.dirty) == (True, False)


def test_check_lists_every_fault_at_once():
    broken = data(
        row("ours", 0, 1.0),
        row("ours", 0, 2.0),
        row("theirs", 0, 1.0),
        row("ours", 1, 1.0, task="coco"),
        row("ours", 2, 1.0, status="lost"),
        baseline="nobody",
        probes=(ProbeRow("probed", "knn", {}),),
        pretraining=(Curve("x", "curved", None, None, ()),),
    )
    with pytest.raises(ValueError, match="report data of pipeline 'demo'") as caught:
        check(broken)
    text = str(caught.value)
    assert "result ('ours', 'voc', 0) given 2 times, wanted once" in text
    for name in ("theirs", "nobody", "probed", "curved"):
        assert f"unknown backbone '{name}'; known: random, ours" in text
    assert "unknown task 'coco'; known: voc" in text
    assert "unknown status 'lost'; known: done, failed" in text
    assert "\n" not in text


def test_sizes_and_classes_have_tables_of_their_own():
    found = further_summaries(paper_case(), PUBLISHED_VOC)
    assert found["By object size"].task.metrics == ("bbox/APs", "bbox/APm")
    assert found["By class"].task.metrics == ("bbox/AP-cat", "bbox/AP-dog")


# --- results.json


def test_results_json_keeps_the_contract():
    found = json.loads(results_json(case()))
    assert found["command"] == "run_pipeline.py run"
    assert found["rows"][0] == {
        "backbone": "random",
        "task": "voc",
        "seed": 0,
        "metrics": {"bbox/AP50": 30.0, "bbox/AP": 16.0, "bbox/AP75": 14.0},
    }
    assert [(r["backbone"], r["task"], r["seed"]) for r in found["rows"]] == [
        ("random", "voc", 0),
        ("random", "voc", 1),
        ("cw-rgp", "voc", 0),
        ("cw-rgp", "voc", 1),
        ("random", "coco", 0),
        ("random", "coco", 1),
        ("cw-rgp", "coco", 0),
    ]
    assert all(set(r) == {"backbone", "task", "seed", "metrics"} for r in found["rows"])
    assert found["probes"] == [{"backbone": "cw-rgp", "probe": "knn", "metrics": {"top1": 71.25}}]
    assert found["unfinished"] == [
        {
            "backbone": "cw-rgp",
            "task": "coco",
            "seed": 1,
            "status": "failed",
            "reason": "out of memory",
            "log": "runs/demo/log.txt",
        }
    ]


def test_results_json_has_null_for_nan():
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(results_json(case()), parse_constant=refuse)
    assert found["rows"][-1]["metrics"] == {"bbox/AP": 20.0, "segm/AP": None}


def test_results_json_summary_holds_the_paired_difference():
    found = json.loads(results_json(case()))["summary"]
    [ap] = [
        e for e in found if (e["backbone"], e["metric"], e["task"]) == ("cw-rgp", "bbox/AP", "voc")
    ]
    # 27-16 and 29-17
    assert (ap["mean"], ap["n"], ap["planned"], ap["verdict"]) == (28.0, 2, 2, "yes")
    assert ap["difference"] == {
        "mean": 11.5,
        "std": pytest.approx(math.sqrt(0.5)),
        "n": 2,
        "paired": True,
    }


def test_results_follow_their_schema():
    Results.model_validate_json(results_json(paper_case()))
    schema = json.loads(schema_json())
    assert set(schema["required"]) == set(json.loads(results_json(paper_case())))
