"""Both evaluators: perfect detections give 100, shuffled ones next to nothing, none gives 0."""

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, Instances

from transfer.config import KNOWN_DATASETS, CocoData, VocData, known_datasets
from transfer.datasets import class_names, register, restore_numpy_names
from transfer.digits import Sizes, build_digits
from transfer.evaluation import PREDICTIONS, build_evaluator, flat_metrics


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CocoData | VocData]:
    """Register a small drawing of the digits in both layouts."""
    root = tmp_path_factory.mktemp("data")
    build_digits(root / "digits", sizes=Sizes(4, 20, 2, 20, 20))
    names = ("digits_voc_test", "digits_coco_val")
    sets = {name: KNOWN_DATASETS[name].under(root) for name in names}
    register(sets)
    return sets


def boxes_of(record: dict[str, Any]) -> tuple[list[list[float]], list[int]]:
    boxes = []
    for entry in record["annotations"]:
        x, y, a, b = entry["bbox"]
        boxes.append([x, y, a, b] if entry["bbox_mode"].value == 0 else [x, y, x + a, y + b])
    return boxes, [entry["category_id"] for entry in record["annotations"]]


def evaluate(
    name: str, output_dir: Path, detect: Callable[[int, list[dict[str, Any]]], Instances]
) -> dict[str, float]:
    records = DatasetCatalog.get(name)
    evaluator: DatasetEvaluators = build_evaluator(name, output_dir)
    evaluator.reset()
    for index, record in enumerate(records):
        evaluator.process([record], [{"instances": detect(index, records)}])
    results = evaluator.evaluate()
    kept = json.loads((output_dir / PREDICTIONS).read_text(encoding="utf-8"))
    return flat_metrics(results, num_detections=len(kept))


def instances(boxes: list[list[float]], classes: list[int]) -> Instances:
    found = Instances((128, 128))
    found.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    found.scores = torch.full((len(boxes),), 0.9)
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return found


def perfect(index: int, records: list[dict[str, Any]]) -> Instances:
    return instances(*boxes_of(records[index]))


def shuffled(index: int, records: list[dict[str, Any]]) -> Instances:
    return instances(*boxes_of(records[(index + 7) % len(records)]))


def nothing(index: int, records: list[dict[str, Any]]) -> Instances:
    return instances([], [])


@pytest.mark.parametrize("name", ["digits_voc_test", "digits_coco_val"])
def test_perfect_shuffled_and_no_detections(digits: object, tmp_path: Path, name: str) -> None:
    best = evaluate(name, tmp_path / "a", perfect)
    assert [best[f"bbox/{key}"] for key in ("AP", "AP50", "AP75")] == pytest.approx([100] * 3)
    assert evaluate(name, tmp_path / "b", shuffled)["bbox/AP"] < 2
    none = evaluate(name, tmp_path / "c", nothing)
    assert [none[f"bbox/{key}"] for key in ("AP", "AP50", "AP75")] == [0, 0, 0]
    kept = json.loads((tmp_path / "a" / PREDICTIONS).read_text(encoding="utf-8"))
    assert len(kept) == sum(len(r["annotations"]) for r in DatasetCatalog.get(name))
    assert set(kept[0]) >= {"image_id", "category_id", "bbox", "score"}


def test_both_layouts_describe_the_same_boxes(digits: object) -> None:
    voc, coco = (DatasetCatalog.get(name) for name in ("digits_voc_test", "digits_coco_val"))
    assert len(voc) == len(coco) > 10
    assert [boxes_of(record) for record in voc] == [boxes_of(record) for record in coco]
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert class_names("digits_voc_test") == class_names("digits_coco_val") == names


def test_ap_of_a_case_worked_out_by_hand(voc: VocData, coco: CocoData, tmp_path: Path) -> None:
    # Three objects. The two best detections are right, the third is wrong, one object is missed:
    # precision is 1 up to a recall of 2/3 and then nothing. VOC07 averages 11 recalls 0, 0.1 .. 1:
    # 0 to 0.6 are reached, 7/11. COCO averages 101 recalls: 0 to 0.66 are reached, 67/101.
    register({"hand_voc": voc, "hand_coco": coco})

    def detect(index: int, records: list[dict[str, Any]]) -> Instances:
        boxes, classes = boxes_of(records[index])
        found = instances(boxes if index < 2 else [[0, 0, 3, 3]], classes)
        found.scores = torch.tensor([0.9 - 0.1 * index])
        return found

    assert evaluate("hand_voc", tmp_path / "v", detect)["bbox/AP50"] == pytest.approx(700 / 11)
    assert evaluate("hand_coco", tmp_path / "c", detect)["bbox/AP50"] == pytest.approx(6700 / 101)


def test_nan_is_zero_only_where_nothing_was_detected() -> None:
    nan = float("nan")
    part = OrderedDict(bbox={"AP": 1.0, "AP50": 2.0, "AP75": 3.0, "APl": nan})
    assert math.isnan(flat_metrics(part, num_detections=5)["bbox/APl"])
    empty = OrderedDict(bbox={"AP": nan, "AP50": nan, "AP75": nan, "APl": nan})
    assert set(flat_metrics(empty, num_detections=0).values()) == {0.0}
    with pytest.raises(ValueError, match="bbox AP, AP50, AP75 is NaN with 5 detections"):
        flat_metrics(empty, num_detections=5)


def test_known_sets_lie_below_the_datasets_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    sets = known_datasets()
    val, test = sets["coco_2017_val"], sets["voc_2007_test"]
    assert isinstance(val, CocoData) and isinstance(test, VocData)
    assert val.annotations == Path("/data/coco/annotations/instances_val2017.json")
    assert (test.root, test.split, test.year) == (Path("/data/VOC2007"), "test", 2007)


def test_aliases_come_back_only_for_the_build_that_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(vars(numpy), "int", None)
    monkeypatch.delitem(vars(numpy), "int")
    for version, expected in (("0.6+pure.1", False), ("0.6", True)):
        monkeypatch.setattr("importlib.metadata.version", lambda name, found=version: found)
        restore_numpy_names()
        assert ("int" in vars(numpy)) is expected
    assert vars(numpy)["int"] is int
    for name in ("int", "float", "str"):
        vars(numpy).pop(name, None)
