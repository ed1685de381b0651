"""Every fault of a data set is one line that names the file and what was expected."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transfer.config import CocoData, VocData
from transfer.data_check import MAX_FAULTS, detection_faults

Content = dict[str, Any]


def edit(data: CocoData, change: Callable[[Content], object]) -> None:
    content = json.loads(data.annotations.read_text(encoding="utf-8"))
    change(content)
    data.annotations.write_text(json.dumps(content), encoding="utf-8")


def test_sound_sets_have_no_faults(coco: CocoData, voc: VocData) -> None:
    assert detection_faults(coco) == []
    assert detection_faults(voc) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["annotations"][1].update(image_id=9), "annotation 2: image_id 9 is not"),
        (lambda c: c["annotations"][1].update(category_id=8), "annotation 2: category_id 8 is not"),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 0, 4]), r"annotation 3: bbox \[1, 2, 0"),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), "annotation 3: bbox"),
        (lambda c: c["annotations"][2].update(bbox="1 2 3 4"), "annotation 3: bbox"),
        (lambda c: c["annotations"][0].pop("category_id"), "lacks or misuses 'category_id'"),
        (lambda c: c["images"][0].pop("file_name"), "lacks or misuses 'file_name'"),
        (lambda c: c["images"][0].update(width=65), r"000.jpg: size \(64, 48\), but .* \(65, 48\)"),
        (lambda c: c["images"][0].update(file_name="x.jpg"), "x.jpg: no such image; .* points at"),
        (lambda c: c["annotations"][0].update(id=0), "annotation id 0 .*from 1"),
        (lambda c: c["annotations"][0].update(id=2), r"annotation id 2 \(2 times\)"),
        (lambda c: c["annotations"][0].pop("area"), "annotation 1: area is None, wanted a number"),
        (lambda c: c["categories"][0].pop("name"), "lacks or misuses 'name'"),
        (lambda c: c.update(annotations=[]), "no annotations; AP cannot be measured"),
        (lambda c: c.update(images=[]), "not COCO's layout"),
        (lambda c: c.pop("categories"), "not COCO's layout"),
    ],
)
def test_coco_faults(coco: CocoData, change: Callable[[Content], object], expected: str) -> None:
    edit(coco, change)
    faults = detection_faults(coco)
    assert len(faults) == 1 and re.search(expected, faults[0]), faults


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "3", "\x00"])
def test_files_that_are_not_coco(coco: CocoData, content: str) -> None:
    coco.annotations.write_text(content, encoding="utf-8")
    (fault,) = detection_faults(coco)
    assert str(coco.annotations) in fault and "wanted" in fault


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("<name>one</name>", "<name>two</name>", "unknown class 'two'; known: one"),
        ("<difficult>0</difficult>", "", "lacks difficult"),
        ("<truncated>0</truncated>", "<truncated>no</truncated>", "lacks truncated"),
        ("<pose>x</pose>", "", "lacks pose"),
        ("<xmax>30</xmax>", "", "lacks a bndbox"),
        ("<xmax>30</xmax>", "<xmax>30.5</xmax>", "not in whole pixels"),
        ("<xmax>30</xmax>", "<xmax>5</xmax>", "has an empty bndbox"),
        ("<width>64</width>", "", "not VOC's XML"),
        ("<width>64</width>", "<width>63</width>", "size (64, 48), but"),
        ("</annotation>", "", "not VOC's XML"),
    ],
)
def test_voc_faults(voc: VocData, old: str, new: str, expected: str) -> None:
    path = voc.root / "Annotations" / "001.xml"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    (fault,) = detection_faults(voc)
    assert expected in fault and "001" in fault


def test_masks_are_asked_for_where_the_model_needs_them(coco: CocoData, voc: VocData) -> None:
    assert detection_faults(coco, masks=True) == []
    edit(coco, lambda content: content["annotations"][0].update(segmentation=[]))
    assert detection_faults(coco, masks=False) == []
    (fault,) = detection_faults(coco, masks=True)
    assert "annotation 1: no segmentation, but MODEL.MASK_ON asks for masks" in fault
    (fault,) = detection_faults(voc, masks=True)
    assert "VOC's layout has no masks" in fault


def test_empty_boxes_are_left_to_training_and_refused_for_evaluation(coco: CocoData) -> None:
    edit(coco, lambda content: content["annotations"][0].update(bbox=[1, 2, 0, 4]))
    assert detection_faults(coco, evaluated=False) == []
    assert "bbox [1, 2, 0, 4]" in detection_faults(coco, evaluated=True)[0]


def test_a_class_without_objects_cannot_be_evaluated(voc: VocData) -> None:
    two = voc.model_copy(update={"class_names": ("one", "two")})
    assert detection_faults(two, evaluated=False) == []
    (fault,) = detection_faults(two)
    assert "test.txt: no object to count of two; their AP cannot be measured" in fault


def test_a_blank_line_in_a_split_is_a_fault(voc: VocData) -> None:
    path = voc.root / "ImageSets" / "Main" / "test.txt"
    path.write_text("000\n\n001\n", encoding="utf-8")
    (fault,) = detection_faults(voc)
    assert "test.txt: cannot be read (a blank line)" in fault


def test_a_set_that_is_only_trained_on_needs_no_evaluation_fields(voc: VocData) -> None:
    path = voc.root / "Annotations" / "001.xml"
    text = path.read_text(encoding="utf-8").replace("<pose>x</pose><truncated>0</truncated>", "")
    path.write_text(text.replace(">30<", ">30.5<"), encoding="utf-8")
    assert len(detection_faults(voc, evaluated=True)) == 3
    assert detection_faults(voc, evaluated=False) == []


def test_voc_files_that_are_missing(voc: VocData) -> None:
    (voc.root / "Annotations" / "000.xml").unlink()
    (voc.root / "JPEGImages" / "001.jpg").unlink()
    faults = detection_faults(voc)
    assert len(faults) == 2
    assert "000.xml: no such file" in faults[0] and "001.jpg: no such image" in faults[1]
    (voc.root / "ImageSets" / "Main" / "test.txt").unlink()
    assert "test.txt: cannot be read" in detection_faults(voc)[0]


@pytest.mark.parametrize("damage", ["text", "cut"])
def test_unreadable_images_are_named(coco: CocoData, voc: VocData, damage: str) -> None:
    for path in (coco.images / "002.jpg", voc.root / "JPEGImages" / "002.jpg"):
        if damage == "text":
            path.write_text("hello", encoding="utf-8")
        else:
            Image.effect_noise((64, 48), 90).convert("RGB").save(path)
            path.write_bytes(path.read_bytes()[:-900])
    for data in (coco, voc):
        (fault,) = detection_faults(data)
        assert "002.jpg: not a readable image" in fault


def test_many_faults_are_cut_short(coco: CocoData) -> None:
    def many(content: Content) -> None:
        content["annotations"] = [
            entry | {"image_id": 99, "id": number}
            for number, entry in enumerate(content["annotations"] * 50, start=1)
        ]

    edit(coco, many)
    faults = detection_faults(coco)
    assert len(faults) == MAX_FAULTS + 1 and "more faults like these" in faults[-1]


def test_hostile_xml_is_refused(voc: VocData) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
    )
    text = bomb + "]><annotation><size><width>&j;</width><height>1</height></size></annotation>"
    (voc.root / "Annotations" / "001.xml").write_text(text, encoding="utf-8")
    (fault,) = detection_faults(voc)
    assert "001.xml: not VOC's XML" in fault


def test_paths_that_leave_the_set_are_only_paths(coco: CocoData, tmp_path: Path) -> None:
    edit(coco, lambda content: content["images"][0].update(file_name="../../../etc/hostname"))
    (fault,) = detection_faults(coco)
    assert "hostname" in fault
