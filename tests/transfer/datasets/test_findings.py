"""Findings: what is noted and what refused, and the bounded number of lines of a kind."""

from collections.abc import Callable

import pytest
import torch
from detectron2.structures import Boxes

from tests.transfer.datasets.edits import Content, Faults, check_set, edit, first
from transfer.config.data import CocoData, VocData
from transfer.datasets.check import check_sets
from transfer.datasets.findings import MAX_PER_KIND, Needs


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
    left_out = "1 of 3 images has no objects, or crowds only (000.jpg): left out of training"
    assert [left_out in note for note in trained.notes[1:]] == [True] * ("polygon" in expected)
    assert evaluated.notes == [] and len(evaluated.faults) == 1 and expected in evaluated.faults[0]


@pytest.mark.parametrize(
    ("box", "is_dropped"),
    [
        ([10, 10, 5, 5], False),
        ([10, 10, 2e-5, 5], False),
        ([10, 10, 1e-5, 5], True),
        ([10, 10, 5, 1e-5], True),
        ([10, 10, 0, 5], True),
        ([62, 10, 5, 5], False),
        ([64, 10, 1, 5], True),
        ([-1, 10, 1, 5], True),
        ([10, 700, 9, 9], True),
    ],
)
def test_a_set_of_boxes_that_detectron2_drops_has_nothing_to_train_on(
    coco: CocoData, box: list[float], is_dropped: bool
) -> None:
    edit(coco, lambda content: [entry.update(bbox=box) for entry in content["annotations"]])
    report = check_set("", coco, Needs(evaluated=False, masks=False))
    assert ["nothing to train on is left" in fault for fault in report.faults] == [
        True
    ] * is_dropped
    corners = [[box[0], box[1], box[0] + box[2], box[1] + box[3]]]
    boxes = Boxes(torch.tensor(corners, dtype=torch.float64))
    boxes.clip((48, 64))
    assert bool(boxes.nonempty(threshold=1e-5)) is not is_dropped  # as detectron2 has it
    edit(coco, first(bbox=[10, 10, 5, 5]))
    assert check_set("", coco, Needs(evaluated=False, masks=False)).faults == []


def test_vocs_boxes_that_detectron2_drops_are_no_training_either(voc: VocData) -> None:
    for path in (voc.root / "Annotations").iterdir():
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("<xmin>5<", "<xmin>65<").replace(">30<", ">90<"), "utf-8")
    report = check_set("", voc, Needs(evaluated=False, masks=False))
    assert report.faults == [
        f"{voc.root}/ImageSets/Main/test.txt: detectron2 drops every object (it is empty or "
        "outside its image), so nothing to train on is left"
    ]


def test_a_class_of_boxes_that_detectron2_drops_is_not_trained_on(
    coco: CocoData, voc: VocData
) -> None:
    for path in (voc.root / "JPEGImages").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    edit(coco, lambda content: content["categories"].append({"id": 8, "name": "two"}))
    edit(coco, first(bbox=[1, 2, 0, 4], category_id=8))
    path = voc.root / "Annotations" / "000.xml"
    path.write_text(path.read_text(encoding="utf-8").replace(">one<", ">two<"), encoding="utf-8")
    two = voc.model_copy(update={"class_names": ("one", "two")})
    sets = {
        "test": (two, Needs(True, False, train_sets=(("train",),))),
        "train": (coco, Needs(False, False)),
    }
    (note,) = dict(check_sets(sets))["test"].notes
    assert "has objects of two, but train has none; their AP will be near 0" in note


def test_masks_without_a_pixel_are_dropped_where_masks_are_trained_on(coco: CocoData) -> None:
    runs = {"size": [48, 64], "counts": [3072]}
    edit(coco, lambda content: [a.update(segmentation=runs) for a in content["annotations"]])
    assert check_set("", coco, Needs(False, masks=False)).faults == []
    report = check_set("", coco, Needs(False, masks=True))
    assert "nothing to train on is left" in report.faults[0]
    assert "segmentation has runs without a pixel; training drops it" in report.notes[0]


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
