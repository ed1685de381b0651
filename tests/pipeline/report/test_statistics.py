"""Tests and correlations against values worked out by hand."""

import math

import pytest

from pipeline.report.data import Curve, ProbeRow, ReportData, ResultRow, TaskInfo
from pipeline.report.prediction import answer, predictions, predictors
from pipeline.report.statistics import paired_p, rank_correlation


def test_p_of_two_seeds_is_that_of_students_t_with_one_degree_of_freedom():
    # differences 9 and 11: mean 10, standard error 1, t = 10; one degree of freedom is Cauchy's
    ours, base = {0: 19.0, 1: 31.0}, {0: 10.0, 1: 20.0}
    assert paired_p(ours, base) == pytest.approx(1 - 2 * math.atan(10) / math.pi)


def test_p_uses_common_seeds_whatever_their_order():
    # differences 1, 2, 3: t = 2 / (1 / sqrt(3)); with two degrees of freedom
    # p = 1 - t / sqrt(2 + t^2)
    ours, base = {2: 13.0, 0: 11.0, 1: 12.0, 9: 500.0}, {0: 10.0, 1: 10.0, 2: 10.0, 8: -3.0}
    t = 2 * math.sqrt(3)
    assert paired_p(ours, base) == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert paired_p(base, ours) == pytest.approx(paired_p(ours, base))


@pytest.mark.parametrize(
    ("ours", "base"),
    [({0: 1.0}, {0: 2.0}), ({0: 1.0, 1: 2.0}, {2: 1.0}), ({0: 2.1, 1: 3.1}, {0: 1.1, 1: 2.1})],
)
def test_without_a_spread_of_common_seeds_there_is_no_p(ours, base):
    assert paired_p(ours, base) is None


def test_rank_correlation_is_of_ranks():
    assert rank_correlation([1, 10, 100], [5, 6, 7]) == pytest.approx(1.0)
    assert rank_correlation([1, 10, 100], [7, 6, 5]) == pytest.approx(-1.0)
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15)
    assert rank_correlation([1, 2, 3, 4], [20, 10, 40, 30]) == pytest.approx(0.6)
    # ranks 1.5 1.5 3 against 1 2 3: covariance 1.5 / (sqrt(1.5) * sqrt(2))
    assert rank_correlation([1, 1, 9], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


VOC = TaskInfo("voc", "VOC", ("bbox/AP",))


def row(backbone, value):
    return ResultRow(
        backbone, "voc", 0, "done", {"bbox/AP": value}, None, None, (), (), None, "run", False, "0"
    )


def report(*, probes=(), pretraining=(), values=(10.0, 20.0, 30.0)):
    names = ("random", "a", "b")[: len(values)]
    rows = tuple(row(name, value) for name, value in zip(names, values, strict=True))
    return ReportData(
        "demo", names, (VOC,), "random", rows, tuple(probes), tuple(pretraining), (), {}, "run"
    )


def test_predictors_are_probes_and_the_last_indicators():
    points = ({"step": 1.0, "encoding/rank": 3.0, "loss": 1.0}, {"step": 2.0, "encoding/rank": 9.0})
    data = report(
        probes=[ProbeRow("random", "knn", {"top1": 0.3}), ProbeRow("a", "knn", {"top1": math.nan})],
        pretraining=[Curve("a", "a", None, None, points)],
    )
    assert predictors(data) == {"knn top1": {"random": 0.3}, "encoding/rank": {"a": 9.0}}


def test_prediction_pairs_the_number_with_the_mean_ap_and_ranks_them():
    values = {"random": 0.3, "a": 0.2, "b": 0.9}
    data = report(probes=[ProbeRow(name, "knn", {"top1": v}) for name, v in values.items()])
    (found,) = predictions(data)
    assert {name: (x, y.mean) for name, (x, y) in found.places.items()} == {
        "random": (0.3, 10.0), "a": (0.2, 20.0), "b": (0.9, 30.0),
    }  # fmt: skip
    assert found.correlation == pytest.approx(0.5) and found.shown
    assert found.note == "rank correlation +0.50 over 3 backbones"
    assert "knn top1 with Box AP of VOC" in answer([found]) and "are few" in answer([found])


def test_two_backbones_are_shown_and_not_ranked():
    values = {"random": 0.3, "a": 0.2}
    probes = [ProbeRow(name, "knn", {"top1": v}) for name, v in values.items()]
    (found,) = predictions(report(probes=probes, values=(10.0, 20.0)))
    assert found.correlation is None and found.note == "2 backbones: too few to rank"
    assert "nothing to rank yet" in answer([found])
