"""Labels, numbers, sentences and provenance."""

import math
from dataclasses import replace

import pytest

from pipeline.report.text import Entry, duration, entry, findings, metric_label, number
from tests.pipeline.report.cases import case


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(None, "–"), (math.nan, "–"), (0.4, "0 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min")],
)
def test_duration(seconds, wanted):
    assert duration(seconds) == wanted


def test_provenance_entries_by_depth():
    assert entry("dirty", True) == Entry("dirty", text="yes")
    assert entry("wall_time_s", {"a": 61}) == Entry("wall time", pairs=(("a", "1 min 01 s"),))
    assert entry("hardware", {"gpu": None}) == Entry("hardware", pairs=(("gpu", "–"),))
    assert entry("c", {"a": {"b": 1}}).folded == '{\n  "a": {\n    "b": 1\n  }\n}'


def test_labels_and_numbers():
    assert metric_label("bbox/AP50") == "Box AP50"
    assert metric_label("segm/AP") == "Mask AP"
    assert metric_label("knn/top1") == "knn/top1"
    assert (number(-1.25, 1), number(-0.04, 1), number(None, 1)) == ("−1.2", "0.0", "–")


def test_findings_say_who_is_highest_and_whether_it_stands_out():
    assert findings(case()) == [
        "Faster R-CNN on VOC: cw-rgp has the highest Box AP, 28.0 ± 1.4 over 2 seeds: "
        "+11.5 ± 0.7 against random, more than the seed spread.",
        "Mask R-CNN on COCO: cw-rgp has the highest Box AP, 20.0 ± – over 1 seed: "
        "+10.0 ± – against random, too few seeds for a spread.",
    ]
    nothing = replace(case(), rows=())
    assert findings(nothing)[0] == "Faster R-CNN on VOC: no finished result."
