"""Labels, numbers, sentences and provenance."""

import math
from dataclasses import replace

import pytest

from pipeline.report.tables import markdown
from pipeline.report.text import Entry, duration, entry, findings, metric_label, number
from tests.pipeline.report.cases import COCO, VOC, case, row


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


COMMON = "each comparison on the seeds in common only"


def test_findings_say_what_the_numbers_allow_and_on_how_much_they_stand():
    evidence = (
        "of fine-tuning, one pretraining of each pretrained backbone, and another one may differ "
        "by more than the seeds do."
    )
    assert findings(case()) == [
        "Faster R-CNN on VOC, Box AP: higher than random: cw-rgp (+11.5, 95 % interval 5.1 to "
        f"17.9). Evidence: 2 seeds {evidence}",
        "Mask R-CNN on COCO, Box AP: of 4 fine-tunings 1 failed; no interval of the difference "
        "from random: cw-rgp (+10.0, 1 of 2 seeds in common). Evidence: 1 to 2 "
        f"seeds of fine-tuning, {COMMON}, {evidence.removeprefix('of fine-tuning, ')}",
    ]


def measured_on(*counts):
    """The identity of a task with such numbers of files in its test sets."""
    return {"data": {"TRAIN": [], "TEST": [{"images": {"num_files": n}} for n in counts]}}


@pytest.mark.parametrize(
    ("identity", "told"),
    [
        (measured_on(4952), "4,952 test images"),
        (measured_on(1), "1 test image"),
        *((each, None) for each in (
            None, {}, {"data": None}, {"data": {"TEST": [None]}}, measured_on(), measured_on(5, 6),
            measured_on("5"), measured_on(0), measured_on(float("inf")),
        )),
    ],
)  # fmt: skip
def test_the_evidence_has_the_number_of_test_images_where_it_is_known(identity, told):
    given = replace(case(), tasks=(replace(VOC, identity=identity), COCO))
    first, second = findings(given)
    seeds = "Evidence: 2 seeds of fine-tuning"
    assert f"{seeds}, {told}, one pretraining" in first if told else f"{seeds}, one pre" in first
    assert "test image" not in second


def test_the_first_sentence_says_where_another_metric_differs_than_the_main_one():
    rows = [
        row(name, VOC, seed, values)
        for name, each in {
            "random": ((30.0, 16.0, 25.0), (32.0, 17.0, 26.0)),
            "a": ((50.0, 17.0, 4.0), (53.0, 15.0, 5.5)),
            "b": ((50.0, 36.0, 45.0), (53.0, 38.0, 47.0)),
        }.items()
        for seed, values in enumerate(each)
    ]
    data = replace(case(), rows=tuple(rows), backbones=("random", "a", "b"), tasks=(VOC,))
    (text,) = findings(replace(data, probes=(), pretraining=(), finetuning=()))
    assert (
        "not told apart from random: a (−0.5, 95 % interval −19.6 to 18.6; Box AP50 is higher; "
        "Box AP75 is lower)" in text
    )
    assert "higher than random: b (+20.5, 95 % interval 14.1 to 26.9)" in text


def told(**values):
    by_seed = {
        name: each if isinstance(each, dict) else dict(enumerate(each))
        for name, each in values.items()
    }
    rows = [
        row(name, COCO, seed, (ap, ap)) for name, each in by_seed.items()
        for seed, ap in each.items()
    ]  # fmt: skip
    given = replace(case(), rows=tuple(rows), backbones=tuple(values), tasks=(COCO,))
    return findings(replace(given, probes=(), pretraining=(), finetuning=()))[0]


def test_what_is_not_told_apart_is_not_ranked():
    assert "not told apart from random: a (+0.1, 95 % interval −1.2 to 1.4)" in told(
        random=(0.1, 0.2), a=(0.1, 0.4)
    )
    text = told(random=(1.0, 2.0, 3.0), a=(20.0, 23.0, 21.0), b=(21.0, 22.5, 23.0))
    assert "higher than random: a (+19.3" in text and "b (+20.2" in text
    assert "; b has the highest mean; not told apart from it: a. Evidence: 3 seeds" in text
    text = told(random=(1.0, 2.0, 3.0), a=(10.0, 11.5, 12.0), b=(21.0, 22.5, 23.0))
    assert "; b is higher than each of the others. Evidence" in text


def test_that_the_baseline_is_highest_is_said_once():
    text = told(random=(3.0, 4.0), a=(2.9, 3.8), b=(2.8, 4.1))
    assert ": random has the highest mean; not told apart from it: a (−0.2" in text
    assert text.count("told apart") == 1 and text.count("highest") == 1
    text = told(random=(21.0, 22.5, 23.0), a=(1.0, 2.0, 3.0), b=(20.9, 22.4, 23.1))
    assert ": lower than random: a (" in text and "; random has the highest mean; not told" in text
    text = told(random=(21.0, 22.5, 23.0), a=(1.0, 2.0, 3.0), b=(2.0, 3.0, 4.5))
    assert "lower than random: a (" in text and "random is higher" not in text


def test_a_difference_says_on_how_many_seeds_it_stands_where_that_is_fewer_than_the_means_do():
    text = told(random=(1.0, 2.0), a=(20.0, 23.0, 30.0), b=(20.0, 23.0))
    assert "a (+20.0, 95 % interval 7.3 to 32.7, 2 of 3 seeds in common)" in text
    assert "b (+20.0, 95 % interval 7.3 to 32.7)" in text
    assert f"Evidence: 2 to 3 seeds of fine-tuning, {COMMON}, " in text
    text = told(random={0: 1.0, 1: 2.0, 2: 3.0}, a={1: 20.0, 2: 23.0, 3: 30.0})
    assert "2 of 3 seeds in common)" in text and f"3 seeds of fine-tuning, {COMMON}" in text
    assert "no seeds in common)" in told(random={0: 1.0, 1: 2.0}, a={2: 20.0, 3: 23.0})
    assert "in common" not in told(random=(1.0, 2.0), a=(20.0, 23.0))


def test_with_one_seed_nothing_is_told_apart():
    text = told(random=(1.0,), a=(20.0,), b=(30.0,))
    assert (
        "Box AP: no difference can be told with one seed, two give an interval; compared with "
        "random: a (+19.0), b (+29.0). Evidence: 1 seed of fine-tuning"
    ) in text


def test_the_first_sentence_says_what_failed_and_claims_no_pretraining_that_gave_no_result():
    needs = "needs pretrain/a, which failed: NaN"
    rows = [row("random", COCO, seed, (1.0, 1.0)) for seed in (0, 1)]
    rows += [row("a", COCO, 0, (), status="failed", reason="out of memory")]
    rows += [row("b", COCO, seed, (), status="missing", reason=needs) for seed in (0, 1)]
    given = replace(case(), rows=tuple(rows), backbones=("random", "a", "b"), tasks=(COCO,))
    given = replace(given, probes=(), pretraining=(), finetuning=())
    failures = "of 5 fine-tunings 1 failed and 2 not run, as what they need failed; "
    assert findings(given) == [
        f"Mask R-CNN on COCO, Box AP: {failures}nothing to compare random with. "
        "Evidence: 2 seeds of fine-tuning."
    ]
    nothing = findings(replace(given, rows=tuple(rows[2:])))
    assert nothing == [f"Mask R-CNN on COCO: {failures.replace('5', '3')}no finished result."]
    assert f"**not run**: b, seed 0: {needs}" in markdown(given)


def test_nothing_finished_is_said():
    nothing = replace(case(), rows=())
    assert findings(nothing)[0] == "Faster R-CNN on VOC: no finished result."
