"""Every fault of a data set is one line that names the file and what was expected."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from transfer.config.data import CocoData, VocData
from transfer.datasets.check import KNOWN_COUNTS, check_set, detection_faults
from transfer.datasets.findings import MAX_PER_KIND, Needs

Content = dict[str, Any]


def edit(data: CocoData, change: Callable[[Content], object]) -> None:
    content = json.loads(data.annotations.read_text(encoding="utf-8"))
    change(content)
    data.annotations.write_text(json.dumps(content), encoding="utf-8")


def test_sound_sets_have_no_faults(coco: CocoData, voc: VocData) -> None:
    assert detection_faults(coco) == []
    assert detection_faults(voc) == []


def first(**changes: Any) -> Callable[[Content], object]:
    """Change the first annotation."""
    return lambda content: content["annotations"][0].update(changes)


def image(**changes: Any) -> Callable[[Content], object]:
    """Change the first image."""
    return lambda content: content["images"][0].update(changes)


def category(**changes: Any) -> Callable[[Content], object]:
    """Change the first category."""
    return lambda content: content["categories"][0].update(changes)


NAN, INF = float("nan"), float("inf")
SQUARE = [4, 5, 29, 5, 29, 39, 4, 39]
RUNS = {"size": [48, 64], "counts": [3000, 72]}
COCO_FAULTS: list[tuple[Callable[[Content], object], str]] = [
    (first(image_id=9), "annotation 1: image_id 9 is not among the images"),
    (first(image_id="0"), "annotation 1: image_id '0' is not"),
    (first(image_id=[0]), r"annotation 1: image_id \[0\] is not"),
    (first(image_id=True), "annotation 1: image_id True is not"),
    (first(category_id=8), "annotation 1: category_id 8 is not among the categories"),
    (first(category_id=None), "annotation 1: category_id None is not"),
    (first(category_id={}), "annotation 1: category_id {} is not"),
    (lambda c: c["annotations"][0].pop("category_id"), "annotation 1: category_id None is not"),
    (first(bbox=[1, 2, 0, 4]), r"annotation 1: bbox \[1, 2, 0, 4\], wanted a width and"),
    (first(bbox=[1, 2, -3, 4]), r"annotation 1: bbox \[1, 2, -3, 4\], wanted a width"),
    (first(bbox=[1, 2, 3]), "annotation 1: bbox .* wanted .x, y, width"),
    (first(bbox="1 2 3 4"), "annotation 1: bbox"),
    (first(bbox=None), "annotation 1: bbox None"),
    (first(bbox=[1, 2, NAN, 4]), "annotation 1: bbox .*nan"),
    (first(bbox=[1, 2, INF, 4]), "annotation 1: bbox .*inf"),
    (first(bbox=[1, 2, True, 4]), "annotation 1: bbox .*True"),
    (first(bbox=[1, 2, "3", 4]), "annotation 1: bbox"),
    (first(bbox=[1, 2, [3], 4]), "annotation 1: bbox"),
    (first(bbox=[10**400, 2, 3, 4]), "annotation 1: bbox .*wanted"),
    (first(bbox=[1e9, 2, 3, 4]), "annotation 1: bbox .* lies outside the image of 64 x 48"),
    (first(bbox=[-30, 2, 10, 4]), "annotation 1: bbox .* lies outside the image"),
    (first(bbox=[60, 2, 10, 4]), "annotation 1: bbox .* lies outside the image"),
    (first(bbox=[1, 2, 10, 400]), "annotation 1: bbox .* lies outside the image"),
    (first(id=0), "annotation id 0 .*from 1"),
    (first(id=-4), "annotation id -4 .*from 1"),
    (first(id=2), r"annotation id 2 \(2 times\)"),
    (first(id="a"), r"annotations\[0\]: id is 'a', wanted a whole number"),
    (first(id=1.5), r"annotations\[0\]: id is 1.5"),
    (first(id=[1]), r"annotations\[0\]: id is \[1\]"),
    (lambda c: c["annotations"][0].pop("id"), r"annotations\[0\]: id is None"),
    (lambda c: c["annotations"].append(3), r"annotations\[3\] is 3, wanted an object"),
    (lambda c: c["annotations"][0].pop("area"), "annotation 1: area is None, wanted a number"),
    (first(area=-1), "annotation 1: area is -1"),
    (first(area=NAN), "annotation 1: area is nan"),
    (first(area="9"), "annotation 1: area is '9'"),
    (first(area=1e9), "annotation 1: area is 1000000000.0, more than its image"),
    (first(iscrowd=2), "annotation 1: iscrowd 2"),
    (first(iscrowd="no"), "annotation 1: iscrowd 'no'"),
    (first(ignore=1), "annotation 1: iscrowd 0 and ignore 1"),
    (first(keypoints=["a"]), "annotation 1: keypoints"),
    (first(segmentation=[[1, 2, 3]]), "annotation 1: segmentation has a polygon of 3 numbers"),
    (first(segmentation=[[1, 2, 3, 4]]), "annotation 1: segmentation has a polygon of 4"),
    (first(segmentation=[[*SQUARE, 3]]), "annotation 1: segmentation has a polygon of 9"),
    (first(segmentation=[SQUARE, []]), "annotation 1: segmentation has a polygon of 0"),
    (first(segmentation=SQUARE), "annotation 1: segmentation has a polygon 4, wanted a list"),
    (first(segmentation=[["a"] * 6]), "annotation 1: segmentation has a polygon .'a'"),
    (first(segmentation=[[NAN] * 6]), "annotation 1: segmentation has a polygon .nan"),
    (first(segmentation=[[1e300] * 6]), "annotation 1: segmentation has a polygon .* far outside"),
    (first(segmentation=[[10**400] * 6]), "annotation 1: segmentation has a polygon"),
    (first(segmentation="RLE"), "annotation 1: segmentation is 'RLE'"),
    (first(segmentation=RUNS | {"size": [64, 48]}), r"runs of size \[64, 48\], wanted \[48, 64\]"),
    (first(segmentation=RUNS | {"size": "48"}), "runs of size '48'"),
    (first(segmentation=RUNS | {"counts": [3000, 71]}), "runs of 3071 pixels, wanted 3072"),
    (first(segmentation=RUNS | {"counts": [3073, -1]}), "has counts .* wanted runs"),
    (first(segmentation=RUNS | {"counts": 5}), "has counts 5"),
    (first(segmentation=RUNS | {"counts": "~~~"}), "has counts '~~~'"),
    (first(segmentation=RUNS | {"counts": "oooooooooooooooooo"}), "has counts 'ooo"),
    (first(segmentation=RUNS | {"counts": "1"}), "has runs of 1 pixels"),
    (first(segmentation={"size": [48, 64]}), "has counts None"),
    (lambda c: c["images"][0].pop("file_name"), r"images\[0\] has file_name None"),
    (image(file_name=""), "has file_name '', which is not a file name"),
    (image(file_name=7), "has file_name 7"),
    (image(file_name="a\0.jpg"), "has file_name .* which is not a file name"),
    (image(file_name="../../../etc/hostname"), "which leaves the folder of the set"),
    (image(file_name="/etc/hostname"), "which leaves the folder of the set"),
    (image(file_name="x.jpg"), "x.jpg: no such image; .* points at it"),
    (image(file_name="\x1b[2J\ud800\n.jpg"), "val/ .2J  .jpg: "),
    (image(file_name="."), "val: not a file"),
    (image(file_name="a" * 5000), "aaa .. .*aaa.*points at it"),
    (image(width=65), r"000.jpg: size \(64, 48\), but .* says \(65, 48\)"),
    (image(width=0), r"images\[0\] has width 0, wanted pixels"),
    (image(width="64"), r"images\[0\] has width '64'"),
    (image(height=-48), r"images\[0\] has height -48"),
    (image(height=NAN), r"images\[0\] has height nan"),
    (image(height=10**300), r"images\[0\] has height 1000.*\.\., wanted pixels"),
    (image(id="0"), r"images\[0\] has id '0', wanted a whole number"),
    (image(id=None), r"images\[0\] has id None"),
    (image(id=1), r"images\[1\] has id 1 as one before"),
    (lambda c: c["images"].append([]), r"images\[3\] is \[\], wanted an object"),
    (category(id="7"), r"categories\[0\] has id '7', wanted whole numbers"),
    (category(name=""), r"categories\[0\] has name '', wanted names"),
    (lambda c: c["categories"][0].pop("name"), r"categories\[0\] has name None"),
    (lambda c: c["categories"].append({"id": 7, "name": "b"}), r"categories\[1\] has id 7"),
    (lambda c: c["categories"].append({"id": 8, "name": "one"}), r"categories\[1\] has name 'one'"),
    (lambda c: c["categories"].append("two"), r"categories\[1\] is 'two'"),
    (lambda c: c.update(annotations=[]), "no annotations to count; AP cannot be measured"),
    (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], "no annotations to count"),
    (lambda c: c.update(images=[]), "not COCO's layout"),
    (lambda c: c.update(images={}), "not COCO's layout"),
    (lambda c: c.update(annotations=None), "not COCO's layout"),
    (lambda c: c.pop("categories"), "not COCO's layout"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), COCO_FAULTS, ids=range(len(COCO_FAULTS)))
@pytest.mark.parametrize("masks", [False, True])
def test_coco_faults(
    coco: CocoData, change: Callable[[Content], object], expected: str, masks: bool
) -> None:
    edit(coco, change)
    faults = detection_faults(coco, masks=masks)
    assert any(re.search(expected, fault) for fault in faults), faults
    assert all(len(fault) < 610 and fault.isprintable() for fault in faults)
    # a broken image or category takes its annotations with it, nothing else has two faults
    follows = ("is not among the", "has id 1 as")
    assert len([fault for fault in faults if not any(text in fault for text in follows)]) <= 1


@pytest.mark.parametrize(
    "change",
    [
        first(segmentation=RUNS),
        first(segmentation={"size": [48, 64], "counts": "hm2X2"}),
        first(segmentation=[SQUARE, SQUARE]),
        first(iscrowd=1, segmentation=RUNS),
        first(bbox=[-0.4, 0, 64.9, 48.3]),
        first(ignore=0),
        lambda c: c["annotations"][0].pop("iscrowd"),
        lambda c: c["categories"].append({"id": 0, "name": "nothing"}),
        lambda c: c.update(info={}, licenses=[]),
    ],
)
def test_what_is_unusual_but_sound(coco: CocoData, change: Callable[[Content], object]) -> None:
    edit(coco, change)
    assert detection_faults(coco, masks=True) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1, 2]",
        "{",
        "3",
        "\x00",
        "null",
        '{"images": [{"id": 1',
        "[" * 100_000,
        "9" * 5000,
        "\ufeff{}",
    ],
)
def test_files_that_are_not_coco(coco: CocoData, content: str) -> None:
    coco.annotations.write_text(content, encoding="utf-8")
    (fault,) = detection_faults(coco)
    assert str(coco.annotations) in fault and "wanted" in fault


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


def test_masks_are_asked_for_where_the_model_needs_them(coco: CocoData, voc: VocData) -> None:
    assert detection_faults(coco, masks=True) == []
    edit(coco, lambda content: content["annotations"][0].update(segmentation=[]))
    assert detection_faults(coco, masks=False) == []
    (fault,) = detection_faults(coco, masks=True)
    assert "annotation 1: no segmentation, but MODEL.MASK_ON asks for masks" in fault
    (fault,) = detection_faults(voc, masks=True)
    assert "VOC's layout has no masks" in fault


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
    assert trained.faults == [] and len(trained.notes) == 1 and expected in trained.notes[0]
    assert evaluated.notes == [] and len(evaluated.faults) == 1 and expected in evaluated.faults[0]


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


def test_many_faults_are_bounded_and_counted_by_kind(coco: CocoData) -> None:
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


def test_sets_that_everybody_has_are_counted(
    coco: CocoData, voc: VocData, monkeypatch: pytest.MonkeyPatch
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
