"""Sets as detectron2 gets them: parts of COCO, class names, ids, and numpy's old names."""

from pathlib import Path
from typing import Any

import numpy
import pytest
from detectron2.data import DatasetCatalog

from examples.digits.build import Sizes, build_digits
from transfer.config.data import KNOWN_DATASETS, CocoData, VocData
from transfer.datasets.register import (
    category_ids,
    class_names,
    part_of,
    register,
    restore_numpy_names,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 4 training and 20 validation scenes."""
    root = tmp_path_factory.mktemp("drawn")
    build_digits(root / "digits", sizes=Sizes(4, 20, 2, 20, 20))
    return root


def test_parts_of_coco_follow_from_ids_and_seed_alone(drawn: Path) -> None:
    records = [{"image_id": number, "file_name": f"{number}.jpg"} for number in range(1000)]
    tenth, other = part_of(records, 0.1, 0), part_of(records, 0.1, 1)
    assert len(tenth) == len(other) == 100 and tenth != other
    assert tenth == [record for record in records if record in tenth]
    backwards = part_of(records[::-1], 0.1, 0)
    assert backwards[::-1] == tenth
    hundredth = part_of(records, 0.01, 0)
    assert len(hundredth) == 10 and all(record in tenth for record in hundredth)
    # pinned: a release that draws other images would make results incomparable
    assert [record["image_id"] for record in hundredth] == [
        46, 87, 282, 306, 366, 392, 404, 864, 923, 942
    ]  # fmt: skip
    names = [name for name in KNOWN_DATASETS if "pct_seed" in name]
    assert len(names) == 10
    part = KNOWN_DATASETS["digits_coco_train"].model_copy(update={"fraction": 0.5})
    register({"half": part.under(drawn)})
    from detectron2.data import DatasetCatalog

    assert len(DatasetCatalog.get("half")) == 2


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


def test_both_layouts_describe_the_same_boxes(digits: object) -> None:
    voc, coco = (DatasetCatalog.get(name) for name in ("digits_voc_test", "digits_coco_val"))
    assert len(voc) == len(coco) > 10
    assert [boxes_of(record) for record in voc] == [boxes_of(record) for record in coco]
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert class_names("digits_voc_test") == class_names("digits_coco_val") == names


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


def test_categories_of_predictions_and_their_classes(coco: CocoData, voc: VocData) -> None:
    register({"hand_coco": coco, "hand_voc": voc})
    assert category_ids("hand_coco") == {7: 0} and category_ids("hand_voc") == {0: 0}
