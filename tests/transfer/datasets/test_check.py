"""Checks of whole sets: sound ones, masks that are asked for, counts of the sets everybody has."""

import pytest

from tests.transfer.datasets.edits import Faults, check_set, edit, first
from transfer.config.data import KNOWN_DATASETS, CocoData, VocData
from transfer.datasets.check import KNOWN_COUNTS, whole_of
from transfer.datasets.findings import Needs


def test_sound_sets_have_no_faults(coco: CocoData, voc: VocData, detection_faults: Faults) -> None:
    assert detection_faults(coco) == []
    assert detection_faults(voc) == []


def test_masks_are_asked_for_where_the_model_needs_them(
    coco: CocoData, voc: VocData, detection_faults: Faults
) -> None:
    assert detection_faults(coco, masks=True) == []
    edit(coco, lambda content: content["annotations"][0].update(segmentation=[]))
    assert detection_faults(coco, masks=False) == []
    (fault,) = detection_faults(coco, masks=True)
    assert "annotation 1: no segmentation, but MODEL.MASK_ON asks for masks" in fault
    (fault,) = detection_faults(voc, masks=True)
    assert "VOC's layout has no masks" in fault


def test_sets_that_everybody_has_are_counted(
    coco: CocoData, voc: VocData, monkeypatch: pytest.MonkeyPatch, detection_faults: Faults
) -> None:
    wanted = {
        "voc_2007_trainval": 5_011, "voc_2007_test": 4_952, "voc_2012_trainval": 11_540,
        "coco_2017_train": 118_287, "coco_2017_val": 5_000,
    }  # fmt: skip
    assert {name: KNOWN_COUNTS[name][0] for name in wanted} == wanted
    for year in ("2007", "2012"):  # each half counted by itself
        halves = zip(
            KNOWN_COUNTS[f"voc_{year}_train"], KNOWN_COUNTS[f"voc_{year}_val"], strict=True
        )
        assert tuple(map(sum, halves)) == KNOWN_COUNTS[f"voc_{year}_trainval"]
    (fault,) = detection_faults(coco, name="coco_2017_val")
    assert "3 images, but coco_2017_val has 5,000; download it again" in fault
    assert detection_faults(coco, name="a_set_of_mine") == []


def test_a_published_set_may_hold_other_objects_and_oddities(
    coco: CocoData, voc: VocData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN_COUNTS, "coco_2017_val", (3, 3))
    use = Needs(evaluated=True, masks=False)
    assert check_set("coco_2017_val", coco, use)[3:] == ([], [])
    edit(coco, first(bbox=[1, 2, 5, 0.0], area=0.0))  # as annotation 918 of COCO's train2017
    sound = check_set("coco_2017_val", coco, use)
    assert sound.faults == [] and "annotation 1: bbox [1, 2, 5, 0.0]" in sound.notes[0]
    assert len(check_set("mine", coco, use).faults) == 1
    monkeypatch.setitem(KNOWN_COUNTS, "voc_2007_test", (3, 3))
    path = voc.root / "Annotations" / "001.xml"
    text = path.read_text(encoding="utf-8").replace("<difficult>0<", "<difficult>1<")
    path.write_text(text, encoding="utf-8")
    report = check_set("voc_2007_test", voc, use)
    assert report.faults == []
    assert report.notes[0].endswith(
        "2 objects to count, but voc_2007_test as published has 3; AP will not compare with others'"
    )


def test_known_parts_are_measured_as_their_whole() -> None:
    parts = [name for name in KNOWN_DATASETS if "pct_seed" in name]
    assert {whole_of(name) for name in parts} == {"coco_2017_train"}
    assert whole_of("mine") == "mine" and whole_of("coco_2017_val") == "coco_2017_val"
