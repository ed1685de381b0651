"""COCO's numbers: equal to pycocotools on random sets, and to cases worked out by hand."""

import copy
import doctest
import gc
import math
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO
from pycocotools import mask as coco_mask

from benchmarks.coco_evaluation import agree, original_ap, synthetic_set
from transfer.detection import evaluation
from transfer.detection.evaluation import Task, coco_ap

Entry = dict[str, Any]


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("num_classes", [80, 3, 1])
def test_equal_to_pycocotools_on_random_detections(task: Task, num_classes: int) -> None:
    # crowds (as plain runs), empty images, equal scores, all sizes; with one class more than the
    # 100 detections that an image may have
    truth, results = synthetic_set(16, 130, masks=task == "segm", seed=num_classes)
    truth["categories"] = truth["categories"][:num_classes]
    ids = [category["id"] for category in truth["categories"]]
    for entry in (*truth["annotations"], *results):
        entry["category_id"] = ids[entry["category_id"] // 2 % num_classes]
    assert any(entry["iscrowd"] for entry in truth["annotations"])
    assert len({entry["image_id"] for entry in truth["annotations"]}) < 16
    names = tuple(category["name"] for category in truth["categories"])
    before = copy.deepcopy(results)
    ours = coco_ap(COCO(copy.deepcopy(truth)), results, task, names)
    assert results == before
    theirs = original_ap(truth, results, task, names if num_classes > 1 else ())
    assert 5 < ours["AP"] < 60 and 1 < ours["APs"] != ours["APl"]
    assert agree(theirs, ours), (theirs, ours)


def one_class(objects: list[Entry], num_images: int = 1) -> COCO:
    return COCO({
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 200}
            for i in range(num_images)
        ],
        "categories": [{"id": 5, "name": "one"}],
        "annotations": [
            {"id": i, "category_id": 5, "iscrowd": 0, "image_id": 0, **entry}
            for i, entry in enumerate(objects, start=1)
        ],
    })  # fmt: skip


def found(box: list[float], score: float, image: int = 0, **changes: Any) -> Entry:
    return {"image_id": image, "category_id": 5, "bbox": box, "score": score, **changes}


def rle(mask: np.ndarray) -> Entry:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def test_overlap_sizes_and_order_by_hand() -> None:
    # Small: 20x20, found at an overlap of 16/20 = 0.8: right at the 7 thresholds 0.5 to 0.8.
    # Large: 100x100, found exactly. One false detection scores between the two.
    # Large alone: the false detection is 10x10, small, so it does not count there: 100.
    # Small alone: the false detection comes first, precision 1/2 at every recall where it is
    # right: 7/10 of 50 = 35. All, at 0.5 to 0.8: precision 1 up to recall 1/2 (51 of 101
    # recalls), then 2/3 (50 of them); above 0.8: 1 up to 1/2, then nothing.
    truth = one_class([
        {"bbox": [0, 0, 20, 20], "area": 400}, {"bbox": [50, 50, 100, 100], "area": 10_000},
    ])  # fmt: skip
    results = [
        found([0, 0, 16, 20], 0.3), found([170, 5, 10, 10], 0.6), found([50, 50, 100, 100], 0.9)
    ]  # fmt: skip
    metrics = coco_ap(truth, results, "bbox", ["one"])
    both = 100 * (51 + 50 * 2 / 3) / 101
    assert metrics["AP50"] == metrics["AP75"] == pytest.approx(both, abs=1e-9)
    assert metrics["AP"] == pytest.approx(0.7 * both + 0.3 * 5100 / 101, abs=1e-9)
    assert metrics["APl"] == pytest.approx(100) and metrics["APs"] == pytest.approx(35)
    assert math.isnan(metrics["APm"]) and "AP-one" not in metrics


def test_masks_are_measured_by_their_own_pixels() -> None:
    # Boxes are found exactly. Of the mask of 40x50 pixels 32 columns are found: an overlap of
    # 0.8, right at 7 of 10 thresholds: AP 70. The found mask has 1,600 pixels and the object 2,000:
    # medium, as boxes of 2,000 also are.
    pixels = np.zeros((200, 200), bool)
    pixels[10:60, 20:60] = True
    part = pixels.copy()
    part[:, 52:] = False
    truth = one_class([
        {"bbox": [20, 10, 40, 50], "area": 2000,
         "segmentation": [[20, 10, 60, 10, 60, 60, 20, 60]]},
    ])  # fmt: skip
    results = [found([20, 10, 40, 50], 0.5, segmentation=rle(part))]
    boxes, masks = (coco_ap(truth, results, task) for task in ("bbox", "segm"))
    assert boxes["AP"] == pytest.approx(100)
    assert masks["AP50"] == masks["AP75"] == pytest.approx(100)
    assert masks["AP"] == masks["APm"] == pytest.approx(70)


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong() -> None:
    # Three detections score above the right one: two lie in the crowd and do not count, one is
    # wrong: precision 1/2. Without the crowd it would be 1/4.
    objects = [
        {"bbox": [0, 0, 100, 100], "area": 10_000, "iscrowd": 1},
        {"bbox": [150, 150, 40, 40], "area": 1600},
    ]
    results = [
        found([5, 5, 20, 20], 0.9), found([40, 40, 30, 30], 0.8), found([110, 110, 30, 30], 0.7),
        found([150, 150, 40, 40], 0.6),
    ]  # fmt: skip
    assert coco_ap(one_class(objects), results, "bbox")["AP"] == pytest.approx(50)
    assert coco_ap(one_class(objects[1:]), results, "bbox")["AP"] == pytest.approx(25)


def test_a_class_is_measured_on_its_own() -> None:
    truth, _ = synthetic_set(1, 0)
    truth["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 1 + 2 * (i - 1), "iscrowd": 0, "area": 900,
         "bbox": [40 * i, 10, 30, 30]}
        for i in (1, 2)
    ]  # fmt: skip
    results = [found([40, 10, 30, 30], 0.5, image=1, category_id=1)]
    names = [category["name"] for category in truth["categories"]]
    metrics = coco_ap(COCO(truth), results, "bbox", names)
    assert (metrics["AP-class 0"], metrics["AP-class 1"], metrics["AP"]) == (100, 0, 50)
    assert math.isnan(metrics["AP-class 2"])


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_no_detection_is_an_ap_of_0(task: Task) -> None:
    metrics = coco_ap(one_class([{"bbox": [0, 0, 20, 20], "area": 400}]), [], task)
    assert metrics["AP"] == metrics["AP50"] == 0 and math.isnan(metrics["APl"])


def test_the_collector_goes_on_after_an_evaluation_and_after_a_failed_one() -> None:
    truth = one_class([{"bbox": [0, 0, 20, 20], "area": 400}])
    assert gc.isenabled()
    coco_ap(truth, [], "bbox")
    assert gc.isenabled()
    with pytest.raises(KeyError):
        coco_ap(truth, [{}], "bbox")
    assert gc.isenabled()
    gc.disable()
    try:
        coco_ap(truth, [], "bbox")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_example_runs() -> None:
    assert doctest.testmod(evaluation) == (0, 4)
