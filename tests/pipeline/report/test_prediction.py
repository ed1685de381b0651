"""Cheap numbers against AP: which there are, how they rank, and what is said of them."""

import math
from dataclasses import replace

import pytest

from pipeline.report.data import Curve, ProbeRow, ReportData, ResultRow, TaskInfo
from pipeline.report.html import answer, html, predictions, predictors

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
    seen = "random 0.3 and 10, a 0.2 and 20, b 0.9 and 30, rank correlation +0.50 over 3 backbones"
    assert f'aria-label="knn top1 and Box AP, VOC: {seen}"' in html(data)


def test_one_run_under_two_names_counts_once():
    values = {"random": 0.3, "a": 0.2, "b": 0.2}
    data = report(probes=[ProbeRow(name, "knn", {"top1": v}) for name, v in values.items()])
    a = next(row for row in data.rows if row.backbone == "a")
    rows = (data.rows[0], a, replace(a, backbone="b"))
    (found,) = predictions(replace(data, rows=rows))
    assert found.note == "2 backbones: too few to rank" and list(found.places) == ["random", "a"]
    other = (*rows[:2], replace(rows[2], run_dir="another"))
    assert len(predictions(replace(data, rows=other))[0].places) == 3


def test_two_backbones_are_shown_and_not_ranked():
    values = {"random": 0.3, "a": 0.2}
    probes = [ProbeRow(name, "knn", {"top1": v}) for name, v in values.items()]
    (found,) = predictions(report(probes=probes, values=(10.0, 20.0)))
    assert found.correlation is None and found.note == "2 backbones: too few to rank"
    assert "nothing to rank yet" in answer([found])
