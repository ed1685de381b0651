"""Every fault of a set in VOC's layout is one line that names the file and what was expected."""

import pytest

from transfer.config.data import VocData
from transfer.datasets.check import detection_faults

BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
)
VOC_FAULTS = [
    ("<name>one</name>", "<name>two</name>", "unknown class 'two'; known: one"),
    ("<name>one</name>", "", "unknown class ''"),
    ("<difficult>0</difficult>", "", "lacks difficult"),
    ("<truncated>0</truncated>", "<truncated>no</truncated>", "lacks truncated"),
    ("<truncated>0</truncated>", "<truncated>²</truncated>", "lacks truncated"),
    ("<pose>x</pose>", "", "lacks pose"),
    ("<xmax>30</xmax>", "", "lacks a bndbox"),
    ("<bndbox>", "<box>", "not VOC's XML"),
    ("<xmax>30</xmax>", "<xmax>30.5</xmax>", "not in whole pixels"),
    ("<xmax>30</xmax>", "<xmax>5</xmax>", "has an empty bndbox"),
    ("<xmax>30</xmax>", "<xmax>3</xmax>", "has an empty bndbox"),
    ("<xmax>30</xmax>", "<xmax>nan</xmax>", "lacks a bndbox"),
    ("<xmax>30</xmax>", "<xmax>inf</xmax>", "lacks a bndbox"),
    ("<xmax>30</xmax>", "<xmax>1e999</xmax>", "lacks a bndbox"),
    ("<xmax>30</xmax>", f"<xmax>{'9' * 5000}</xmax>", "lacks a bndbox"),
    ("<xmax>30</xmax>", "<xmax>thirty</xmax>", "lacks a bndbox"),
    ("<xmax>30</xmax>", "<xmax>300</xmax>", "lies outside the image of 64 x 48"),
    ("<ymin>6</ymin>", "<ymin>-6</ymin>", "lies outside the image of 64 x 48"),
    ("<width>64</width>", "", "not VOC's XML"),
    ("<width>64</width>", "<width>-64</width>", "not VOC's XML"),
    ("<width>64</width>", "<width>0</width>", "not VOC's XML"),
    ("<width>64</width>", "<width>64.0</width>", "not VOC's XML"),
    ("<width>64</width>", "<width>nan</width>", "not VOC's XML"),
    ("<width>64</width>", f"<width>{'9' * 5000}</width>", "not VOC's XML"),
    ("<width>64</width>", "<width>63</width>", "size (64, 48), but"),
    ("</annotation>", "", "not VOC's XML"),
    ("<annotation>", "", "not VOC's XML"),
    ("<annotation>", "\0<annotation>", "not VOC's XML"),
    ("<annotation>", f"{BOMB}]><annotation>", "declares a document type"),
    (
        "<annotation>",
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation>',
        "declares a document type",
    ),
    ("<annotation>", '<!DOCTYPE x SYSTEM "http://x/y.dtd"><annotation>', "declares a document"),
    ("<name>one</name>", "<name>&e;</name>", "not VOC's XML"),
]


@pytest.mark.parametrize(("old", "new", "expected"), VOC_FAULTS, ids=range(len(VOC_FAULTS)))
def test_voc_faults(voc: VocData, old: str, new: str, expected: str) -> None:
    path = voc.root / "Annotations" / "001.xml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    faults = detection_faults(voc)
    assert any(expected in fault and "001" in fault for fault in faults), faults
    assert all("001" in fault and len(fault) < 600 for fault in faults), faults


@pytest.mark.parametrize("content", [b"", b"\xff\xfe<\0", b"{}", b"<x/>", "é".encode("latin-1")])
def test_files_that_are_not_voc(voc: VocData, content: bytes) -> None:
    (voc.root / "Annotations" / "001.xml").write_bytes(content)
    (fault,) = detection_faults(voc)
    assert "001.xml: not VOC's XML" in fault


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("000\n\n001\n", "line 2, '', is a blank line"),
        ("000\n001\n000\n", "line 3, '000', is listed twice"),
        ("000 1\n001\n002\n", "line 1, '000 1', is not one name"),
        ("000\n001\n#2\n", "line 3, '#2', is not one name"),
        ("000\n001\n../002\n", "line 3, '../002', leaves the folder"),
        ("000\n001\n/etc/x\n", "line 3, '/etc/x', leaves the folder"),
        ("000\n", "1 image names, wanted at least 2"),
        ("", "0 image names, wanted at least 2"),
        ("000\n001\n009\n", "009.xml: no such file; the split lists it"),
    ],
)
def test_splits_that_detectron2_would_misread(voc: VocData, lines: str, expected: str) -> None:
    path = voc.root / "ImageSets" / "Main" / "test.txt"
    path.write_text(lines, encoding="utf-8")
    (fault,) = detection_faults(voc)
    assert expected in fault
    path.write_bytes(b"\xff\xff")
    assert "test.txt: cannot be read" in detection_faults(voc)[0]


def test_a_class_without_objects_cannot_be_evaluated(voc: VocData) -> None:
    two = voc.model_copy(update={"class_names": ("one", "two")})
    assert detection_faults(two, evaluated=False) == []
    (fault,) = detection_faults(two)
    assert "test.txt: no object to count of two; their AP cannot be measured" in fault


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
