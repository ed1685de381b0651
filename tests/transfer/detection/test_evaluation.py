"""Both evaluators: perfect detections give 100, shuffled ones next to nothing, none gives 0."""

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.transfer.detection.detections import (
    boxes_of,
    evaluate,
    instances,
    nothing,
    perfect,
    shuffled,
)
from transfer.config.data import CocoData, VocData
from transfer.detection.evaluation import (
    PREDICTIONS,
    as_json,
    build_evaluator,
    flat_metrics,
    without_nan,
)
from transfer.detection.loader import register
from transfer.files import write_json


def pixels_of(objects: list[list[list[float]]]) -> torch.Tensor:
    rles = [coco_mask.merge(coco_mask.frPyObjects(polygons, 128, 128)) for polygons in objects]
    return torch.stack([torch.from_numpy(coco_mask.decode(rle)) for rle in rles]).bool()


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


def test_masks_perfect_and_shuffled(digits: object, tmp_path: Path) -> None:
    def with_masks(source: Callable[[int], int]) -> Callable[[int, list[Any]], Instances]:
        def detect(index: int, records: list[dict[str, Any]]) -> Instances:
            record = records[source(index) % len(records)]
            found = instances(*boxes_of(record))
            polygons = [entry["segmentation"] for entry in record["annotations"]]
            found.pred_masks = pixels_of(polygons)
            return found

        return detect

    name = "digits_coco_val"
    best = evaluate(name, tmp_path / "a", with_masks(lambda i: i), masks=True)
    assert best["segm/AP"] == best["segm/AP50"] == pytest.approx(100)
    assert {"segm/APs", "segm/APm", "segm/APl", "segm/AP-zero", "bbox/AP-nine"} <= set(best)
    worst = evaluate(name, tmp_path / "b", with_masks(lambda i: i + 7), masks=True)
    assert worst["segm/AP"] < 2
    none = evaluate(name, tmp_path / "c", nothing, masks=True)
    assert none["segm/AP"] == none["bbox/AP"] == 0


def test_predictions_can_be_scored_by_any_coco_tool(coco: CocoData, tmp_path: Path) -> None:
    # Category ids are the file's own (7, not 0), boxes are x, y, width, height.
    register({"hand_coco": coco})
    best = evaluate("hand_coco", tmp_path, perfect)
    assert best["bbox/AP"] == pytest.approx(100)
    truth = COCO(str(coco.annotations))
    found = truth.loadRes(str(tmp_path / PREDICTIONS))
    assert found.anns[1]["bbox"] == [4, 5, 25, 34] and found.anns[1]["category_id"] == 7


def test_several_processes_measure_all_detections(
    coco: CocoData, voc: VocData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two evaluators stand for two processes; what the first gathers is what both have found.
    register({"hand_coco": coco, "hand_voc": voc})
    for name in ("hand_coco", "hand_voc"):
        records = DatasetCatalog.get(name)
        shards: list[DatasetEvaluator] = []
        for rank in range(2):
            shards.append(build_evaluator(name, tmp_path / name))
            shards[rank].reset()
            for index in range(rank, 3, 2):
                shards[rank].process([records[index]], [{"instances": perfect(index, records)}])
        sent: list[Any] = []
        monkeypatch.setattr(comm, "gather", lambda data, dst, held=sent: held.append(data) or held)
        monkeypatch.setattr(comm, "is_main_process", lambda: False)
        assert shards[1].evaluate() is None
        monkeypatch.setattr(comm, "is_main_process", lambda: True)
        assert shards[0].evaluate()["bbox"]["AP"] == pytest.approx(100)
        kept = json.loads((tmp_path / name / PREDICTIONS).read_text(encoding="utf-8"))
        assert sorted(entry["image_id"] for entry in kept) == [r["image_id"] for r in records]


def test_classes_without_objects_are_counted_and_enter_no_mean(
    coco: CocoData, tmp_path: Path
) -> None:
    content = json.loads(coco.annotations.read_text(encoding="utf-8"))
    content["categories"] += [{"id": 9, "name": "absent"}, {"id": 11, "name": "crowds"}]
    content["annotations"][2] |= {"category_id": 11, "iscrowd": 1}
    coco.annotations.write_text(json.dumps(content), encoding="utf-8")
    register({"hand_coco": coco})
    metrics = evaluate("hand_coco", tmp_path, perfect)
    assert metrics["bbox/AP"] == metrics["bbox/AP-one"] == pytest.approx(100)
    assert (metrics["classes/measured"], metrics["classes/all"]) == (1, 3)
    assert math.isnan(metrics["bbox/AP-absent"]) and math.isnan(metrics["bbox/AP-crowds"])
    written = as_json(metrics)
    assert written["bbox/AP-absent"] is None and written["bbox/AP"] == metrics["bbox/AP"]
    write_json(tmp_path / "metrics.json", written)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "metrics.json", metrics)


def test_nothing_is_said_of_classes_where_all_were_measured(tmp_path: Path, digits: object) -> None:
    metrics = evaluate("digits_coco_val", tmp_path, perfect)
    assert not [key for key in metrics if key.startswith("classes/")]


def test_logs_leave_out_what_could_not_be_measured() -> None:
    values = {"AP": 1.0, "APl": float("nan"), "AP-one": 0.0}
    assert without_nan({"bbox": values}) == {"bbox": {"AP": 1.0, "AP-one": 0.0}}


def test_an_average_that_is_nan_is_refused() -> None:
    nan = float("nan")
    part = OrderedDict(bbox={"AP": 1.0, "AP50": 2.0, "AP75": 3.0, "APl": nan})
    assert math.isnan(flat_metrics(part)["bbox/APl"])
    broken = OrderedDict(bbox={"AP": nan, "AP50": 1.0, "AP75": nan, "APl": nan})
    with pytest.raises(ValueError, match="bbox AP, AP75 is NaN: the set has no object"):
        flat_metrics(broken)
