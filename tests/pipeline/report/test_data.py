import math

import pytest

from pipeline.report.data import (
    Cell,
    Curve,
    ProbeRow,
    ReportData,
    ResultRow,
    TaskInfo,
    TaskSummary,
    check,
    main_metrics,
    summarise,
)
from pipeline.report.statistics import Difference, Spread, difference, spread, verdict

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


def test_spread_is_mean_and_sample_standard_deviation():
    found = spread([10.0, 12.0, 17.0])
    assert found == Spread(13.0, pytest.approx(math.sqrt((9 + 1 + 16) / 2)), 3)


def test_one_value_has_no_standard_deviation_and_none_no_spread():
    assert spread([4.0]) == Spread(4.0, None, 1)
    assert spread([]) is None


def test_difference_is_paired_by_seed_not_by_position():
    ours = {2: 30.0, 0: 20.0, 1: 25.0}
    base = {0: 10.0, 1: 14.0, 2: 21.0}
    # 20-10, 25-14, 30-21
    assert difference(ours, base) == Difference(10.0, pytest.approx(1.0), 3, paired=True)


def test_difference_uses_common_seeds_only():
    ours = {0: 20.0, 1: 26.0, 7: 900.0}
    base = {0: 10.0, 1: 14.0, 5: -900.0}
    assert difference(ours, base) == Difference(11.0, pytest.approx(math.sqrt(2)), 2, paired=True)


def test_one_common_seed_gives_a_difference_without_spread():
    assert difference({0: 5.0, 1: 9.0}, {0: 3.0, 2: 1.0}) == Difference(2.0, None, 1, paired=True)


def test_without_common_seeds_the_variances_add():
    # means 12 and 2, variances 8 and 2
    found = difference({0: 10.0, 1: 14.0}, {2: 1.0, 3: 3.0})
    assert found == Difference(10.0, pytest.approx(math.sqrt(10)), 2, paired=False)
    assert difference({0: 10.0}, {2: 1.0, 3: 3.0}) == Difference(8.0, None, 1, paired=False)
    assert difference({}, {2: 1.0}) is None


@pytest.mark.parametrize(
    ("diff", "ours", "base", "wanted"),
    [
        ((3.1, 3.0), 1.0, 1.0, "yes"),
        ((3.0, 3.0), 1.0, 1.0, "no"),  # equal is not more
        ((3.1, 0.1), 3.2, 1.0, "no"),  # our own seeds scatter more
        ((3.1, 0.1), 1.0, 3.2, "no"),  # the baseline's seeds scatter more
        ((-3.1, 3.0), 1.0, 1.0, "worse"),
        ((-2.9, 3.0), 1.0, 1.0, "no"),
        ((3.1, None), 1.0, 1.0, "n/a"),
        ((3.1, 0.1), None, 1.0, "n/a"),
        ((3.1, 0.1), 1.0, None, "n/a"),
    ],
)
def test_verdict_wants_more_than_every_spread(diff, ours, base, wanted):
    found = verdict(
        Difference(diff[0], diff[1], 2, paired=True), Spread(9.0, ours, 2), Spread(6.0, base, 2)
    )
    assert found == wanted


def test_verdict_of_nothing_is_not_available():
    assert verdict(None, Spread(1.0, 1.0, 2), Spread(1.0, 1.0, 2)) == "n/a"
    assert verdict(Difference(1.0, 0.1, 2, paired=True), None, None) == "n/a"


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


def test_best_marks_ties_and_nothing_that_stands_alone():
    tie = summarise(data(row("random", 0, 10.0), row("ours", 0, 10.0)))[0]
    assert cell(tie, "random").best
    assert cell(tie, "ours").best
    alone = summarise(data(row("ours", 0, 10.0)))[0]
    assert not cell(alone, "ours").best


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
