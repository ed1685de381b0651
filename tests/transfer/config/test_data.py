"""The sets known by name."""

from pathlib import Path

import pytest

from transfer.config.data import CocoData, VocData, known_datasets


def test_known_sets_lie_below_the_datasets_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    sets = known_datasets()
    val, test = sets["coco_2017_val"], sets["voc_2007_test"]
    assert isinstance(val, CocoData) and isinstance(test, VocData)
    assert val.annotations == Path("/data/coco/annotations/instances_val2017.json")
    assert (test.root, test.split, test.year) == (Path("/data/VOC2007"), "test", 2007)
