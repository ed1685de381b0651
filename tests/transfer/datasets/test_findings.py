"""Findings: what is noted and what refused, and the bounded number of lines of a kind."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from transfer.config.data import CocoData
from transfer.datasets.check import check_set
from transfer.datasets.findings import MAX_PER_KIND, Needs

Faults = Callable[..., list[str]]
Content = dict[str, Any]


def edit(data: CocoData, change: Callable[[Content], object]) -> None:
    content = json.loads(data.annotations.read_text(encoding="utf-8"))
    change(content)
    data.annotations.write_text(json.dumps(content), encoding="utf-8")


def first(**changes: Any) -> Callable[[Content], object]:
    """Change the first annotation."""
    return lambda content: content["annotations"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (first(bbox=[1, 2, 0, 4]), "bbox [1, 2, 0, 4], wanted a width"),
        (first(bbox=[1, 2, 90, 4]), "bbox [1, 2, 90, 4] lies outside the image"),
        (first(segmentation=[[1, 2, 3, 4]]), "segmentation has a polygon of 4 numbers"),
    ],
)
def test_what_training_drops_is_noted_and_evaluation_refuses_it(
    coco: CocoData, change: Callable[[Content], object], expected: str
) -> None:
    edit(coco, change)
    trained, evaluated = (check_set("", coco, Needs(use, False)) for use in (False, True))
    assert trained.faults == [] and expected in trained.notes[0]
    left_out = "1 of 3 images have no objects, or crowds only (000.jpg): left out of training"
    assert [left_out in note for note in trained.notes[1:]] == [True] * ("polygon" in expected)
    assert evaluated.notes == [] and len(evaluated.faults) == 1 and expected in evaluated.faults[0]


def test_many_faults_are_bounded_and_counted_by_kind(
    coco: CocoData, detection_faults: Faults
) -> None:
    def many(content: Content) -> None:
        content["annotations"] = [
            entry | {"image_id": 99, "id": number}
            for number, entry in enumerate(content["annotations"] * 500, start=1)
        ]
        content["images"][0]["width"] = 63

    edit(coco, many)
    faults = detection_faults(coco)
    assert len(faults) == MAX_PER_KIND + 2
    assert faults[MAX_PER_KIND].endswith(
        "val.json: 1,490 more like these (unknown images: 1,500 in all)"
    )
    assert "000.jpg: size (64, 48)" in faults[-1]
