"""Pascal VOC's numbers: equal to detectron2's, and to cases worked out by hand."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Instances

from tests.transfer.detection.detections import boxes_of, evaluate, instances, perfect
from transfer.config.data import CocoData, VocData
from transfer.detection.evaluation import detection_line, voc_ap
from transfer.detection.loader import class_names, register


def known_for_year(sets: dict[str, CocoData | VocData], name: str, year: int) -> VocData:
    data = sets[name]
    assert isinstance(data, VocData)
    return data.model_copy(update={"year": year})


def test_lines_of_the_development_kit_count_pixels_from_one(voc: VocData) -> None:
    assert detection_line("000", 0.91234, (4.0, 5.0, 30.0, 40.0)) == "000 0.912 5.0 6.0 30.0 40.0"
    lines = {0: [detection_line(f"{n:03d}", 0.9, (4.0, 5.0, 30.0, 40.0)) for n in range(3)]}
    assert voc_ap(voc.root, "test", 2012, ("one",), lines) == pytest.approx(
        {"AP": 100, "AP50": 100, "AP75": 100}
    )


def test_voc_is_equal_to_detectron2_and_has_each_class(
    digits: dict[str, CocoData | VocData], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)

    def noisy(index: int, records: list[dict[str, Any]]) -> Instances:
        boxes, classes = boxes_of(records[index])
        count = 40
        picked = torch.randint(len(boxes), (count,), generator=generator)
        moved = torch.tensor(boxes)[picked] + 3 * torch.randn((count, 4), generator=generator)
        found = instances(moved.tolist(), torch.tensor(classes)[picked].tolist())
        found.scores = torch.rand(count, generator=generator).round(decimals=2)
        return found

    name = "digits_voc_test"
    records = DatasetCatalog.get(name)
    detections = [noisy(index, records) for index in range(len(records))]
    for year in (2007, 2012):
        sets = {name: known_for_year(digits, name, year)}
        register(sets)
        records = DatasetCatalog.get(name)
        theirs = PascalVOCDetectionEvaluator(name)
        theirs.reset()
        for record, found in zip(records, detections, strict=True):
            theirs.process([record], [{"instances": found}])
        wanted = theirs.evaluate()["bbox"]
        ours = evaluate(name, tmp_path, lambda index, _: detections[index])
        assert 10 < wanted["AP"] < 90
        for key, value in wanted.items():
            assert ours[f"bbox/{key}"] == pytest.approx(value, abs=1e-9)
        for key in ("AP", "AP50"):
            each = [ours[f"bbox/{key}-{label}"] for label in class_names(name)]
            assert sum(each) / 10 == pytest.approx(ours[f"bbox/{key}"]) and len(set(each)) > 5


def test_voc_of_both_years_by_hand(voc: VocData, tmp_path: Path) -> None:
    # Three objects, best first: right, wrong, right, and the third object is missed. Precision is
    # 1 up to a recall of 1/3 and 2/3 up to a recall of 2/3.
    # 2007, mean of recalls 0, 0.1, .. 1: 0 to 0.3 have 1, 0.4 to 0.6 have 2/3: (4 + 3 * 2/3) / 11.
    # 2012, area: 1/3 * 1 + 1/3 * 2/3 = 5/9.
    # The second right one overlaps by 26 * 28 of 26 * 35 pixels = 0.8: right up to 0.75 as more
    # than the threshold is wanted. At 0.8 and above only the first is right: 4/11, 1/3.
    first = [4.0, 5, 30, 40]
    part = [4.0, 5, 30, 33]
    plan = [([first], [0.9]), ([[40.0, 1, 60, 20], part], [0.8, 0.7]), ([], [])]
    expected = {2007: (600 / 11, 400 / 11), 2012: (500 / 9, 100 / 3)}
    for year, (low, high) in expected.items():
        register({"hand_voc": voc.model_copy(update={"year": year})})

        def detect(index: int, records: list[dict[str, Any]]) -> Instances:
            boxes, scores = plan[index]
            found = instances(boxes, [0] * len(boxes))
            found.scores = torch.tensor(scores)
            return found

        metrics = evaluate("hand_voc", tmp_path, detect)
        assert metrics["bbox/AP50"] == metrics["bbox/AP75"] == pytest.approx(low)
        assert metrics["bbox/AP"] == pytest.approx(0.6 * low + 0.4 * high)


def test_voc_class_names_and_folders_of_any_kind(voc: VocData, tmp_path: Path) -> None:
    root = tmp_path / "a {set} of my own"
    shutil.move(voc.root, root)
    for path in (root / "Annotations").iterdir():
        text = path.read_text(encoding="utf-8").replace("<name>one<", "<name>and/or {}<")
        path.write_text(text, encoding="utf-8")
    mine = voc.model_copy(update={"root": root, "class_names": ("and/or {}",)})
    register({"hand_voc": mine})
    assert evaluate("hand_voc", tmp_path / "out", perfect)["bbox/AP"] == pytest.approx(100)


@pytest.mark.parametrize("year", [2007, 2012])
def test_a_class_without_objects_to_count_enters_no_mean(
    voc: VocData, tmp_path: Path, year: int
) -> None:
    # "two" has no object; "three" has difficult ones alone, which count neither way
    root = voc.root
    path = root / "Annotations" / "002.xml"
    difficult = path.read_text(encoding="utf-8").replace("<name>one<", "<name>three<")
    difficult = difficult.replace("<difficult>0<", "<difficult>1<")
    path.write_text(difficult, encoding="utf-8")
    names = ("one", "two", "three")
    register({"hand_voc": voc.model_copy(update={"year": year, "class_names": names})})
    metrics = evaluate("hand_voc", tmp_path, perfect)
    assert metrics["bbox/AP"] == metrics["bbox/AP-one"] == pytest.approx(100)
    assert metrics["bbox/AP50"] == metrics["bbox/AP75"] == pytest.approx(100)
    for name in ("two", "three"):
        assert math.isnan(metrics[f"bbox/AP-{name}"]) and math.isnan(metrics[f"bbox/AP50-{name}"])
    assert (metrics["classes/measured"], metrics["classes/all"]) == (1, 3)
