"""Every fault of a set in VOC's layout is one line that names the file and what was expected."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.transfer.datasets.edits import Faults, check_set
from transfer.config.data import VocData
from transfer.datasets.findings import Needs
from transfer.datasets.voc import make_splits

BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
)
VOC_FAULTS = [
    ("<name>one</name>", "<name>two</name>", "unknown class 'two'; known: one"),
    ("<name>one</name>", "", "unknown class ''"),
    ("<difficult>0</difficult>", "<difficult>no</difficult>", "has difficult 'no', wanted 0 or 1"),
    ("<difficult>0</difficult>", "<difficult>²</difficult>", "has difficult '²', wanted 0 or 1"),
    ("<xmax>30</xmax>", "", "lacks a bndbox"),
    ("<bndbox>", "<box>", "not VOC's XML"),
    ("<xmax>30</xmax>", "<xmax>30.5</xmax>", "not in whole pixels"),
    ("<xmax>30</xmax>", "<xmax>5</xmax>", "is one pixel wide or high; training takes it as it is"),
    ("<xmax>30</xmax>", "<xmax>4</xmax>", "wanted a width and a height above 0; training drops it"),
    ("<xmax>30</xmax>", "<xmax>3</xmax>", "is inverted, and detectron2 trains on its mirror image"),
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


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(("old", "new", "expected"), VOC_FAULTS, ids=range(len(VOC_FAULTS)))
def test_voc_faults(
    voc: VocData, old: str, new: str, expected: str, detection_faults: Faults
) -> None:
    path = voc.root / "Annotations" / "001.xml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    faults = detection_faults(voc)
    assert any(expected in fault and "001" in fault for fault in faults), faults
    assert all("001" in fault and len(fault) < 600 for fault in faults), faults


@pytest.mark.parametrize("content", [b"", b"\xff\xfe<\0", b"{}", b"<x/>", "é".encode("latin-1")])
def test_files_that_are_not_voc(voc: VocData, content: bytes, detection_faults: Faults) -> None:
    (voc.root / "Annotations" / "001.xml").write_bytes(content)
    (fault,) = detection_faults(voc)
    assert "001.xml: not VOC's XML" in fault


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("000\n\n001\n", "line 2, '', is a blank line"),
        ("\ufeff000\r\n001\r\n", r"line 1, '\ufeff000', is not one name, without spaces, # and"),
        ("000\n001\n000\n", "line 3, '000', is listed twice"),
        ("000 1\n001\n002\n", "line 1, '000 1', is not one name"),
        ("000\n001\n#2\n", "line 3, '#2', is not one name"),
        ("000\n001\n../002\n", "line 3, '../002', leaves the folder"),
        ("000\n001\n/etc/x\n", "line 3, '/etc/x', leaves the folder"),
        ("000\n", "1 image name, wanted at least 2"),
        ("", "0 image names, wanted at least 2"),
        ("000\n001\n009\n", "009.xml: no such file; the split lists it"),
    ],
)
def test_splits_that_detectron2_would_misread(
    voc: VocData, lines: str, expected: str, detection_faults: Faults
) -> None:
    path = voc.root / "ImageSets" / "Main" / "test.txt"
    path.write_text(lines, encoding="utf-8")
    (fault,) = detection_faults(voc)
    assert expected in fault
    path.write_bytes(b"\xff\xff")
    assert "test.txt: cannot be read" in detection_faults(voc)[0]


def test_a_class_without_objects_is_noted(voc: VocData, detection_faults: Faults) -> None:
    two = voc.model_copy(update={"class_names": ("one", "two")})
    assert check_set("", two, Needs(False, False)).notes == []
    report = check_set("", two, Needs(True, False))
    assert report.faults == []
    assert report.notes == [
        f"{voc.root}/ImageSets/Main/test.txt: no object to count of two; "
        "AP is the mean over 1 of 2 classes"
    ]
    for path in (voc.root / "Annotations").iterdir():
        change(path, "<difficult>0<", "<difficult>1<")
    (fault,) = detection_faults(two)
    assert "no annotations to count; AP cannot be measured without objects" in fault
    assert detection_faults(two, evaluated=False) == []  # difficult objects are trained on


def test_images_of_more_objects_than_detections_are_kept_are_noted(voc: VocData) -> None:
    path = voc.root / "Annotations" / "000.xml"
    text = path.read_text(encoding="utf-8")
    entry = text[text.index("<object>") : text.index("</annotation>")]
    path.write_text(text.replace(entry, 120 * entry), encoding="utf-8")
    (note,) = check_set("", voc, Needs(True, False)).notes
    assert note.endswith(
        ": 1 image holds more than 100 objects (most: 000, 120), so perfect detections cannot "
        "reach an AP of 100: TEST.DETECTIONS_PER_IMAGE is 100; the rule of AP counts any number"
    )
    assert check_set("", voc, Needs(True, False, num_kept=120)).notes == []
    assert check_set("", voc, Needs(False, False, num_kept=1)).notes == []


def test_a_set_that_is_only_trained_on_needs_no_evaluation_fields(
    voc: VocData, detection_faults: Faults
) -> None:
    path = voc.root / "Annotations" / "001.xml"
    text = path.read_text(encoding="utf-8").replace("<pose>x</pose><truncated>0</truncated>", "")
    path.write_text(text.replace(">30<", ">30.5<"), encoding="utf-8")
    (fault,) = detection_faults(voc, evaluated=True)
    assert "not in whole pixels" in fault
    assert detection_faults(voc, evaluated=False) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<pose>x</pose>", ""),
        ("<truncated>0</truncated>", "<truncated>no</truncated>"),
        ("<difficult>0</difficult>", ""),
        ("<difficult>0</difficult>", "<difficult/>"),
        (">30<", ">30.0<"),
    ],
)
def test_what_nothing_reads_or_has_an_evident_value_is_accepted(
    voc: VocData, old: str, new: str, detection_faults: Faults
) -> None:
    change(voc.root / "Annotations" / "001.xml", old, new)
    for evaluated in (True, False):
        assert detection_faults(voc, evaluated=evaluated) == []


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".Tiff"])
def test_images_are_those_of_their_stem(
    voc: VocData, suffix: str, detection_faults: Faults
) -> None:
    folder = voc.root / "JPEGImages"
    Image.open(folder / "001.jpg").save(folder / f"001{suffix}")
    (folder / "001.txt").write_text("no image", encoding="utf-8")
    (fault,) = detection_faults(voc)
    assert "001.xml: two images have its name, " in fault and f"001{suffix}" in fault
    (folder / "001.jpg").unlink()
    assert detection_faults(voc) == []


def test_folders_that_are_missing_are_all_named_at_once(
    voc: VocData, detection_faults: Faults
) -> None:
    (voc.root / "Annotations").rename(voc.root / "annotations")
    (voc.root / "JPEGImages").rename(voc.root / "images")
    shutil.rmtree(voc.root / "ImageSets")
    annotations, images, split = detection_faults(voc)
    assert (
        f"Annotations: no such folder, wanted by VOC's layout; rename {voc.root}/anno"
        in annotations
    )
    assert (
        "JPEGImages: no such folder, wanted by VOC's layout; folders there: annotations, images"
        in images
    )
    assert "test.txt: cannot be read (no such file); wanted a line for each image" in split
    assert f"--make-splits 0 {voc.root} writes trainval and test" in split


def test_a_missing_split_names_those_that_are_there(voc: VocData, detection_faults: Faults) -> None:
    (fault,) = detection_faults(voc.model_copy(update={"split": "val"}))
    assert "val.txt: cannot be read (no such file)" in fault and "; splits there: test" in fault


def test_splits_follow_from_seed_and_names_and_are_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Annotations: 0 annotations .* at least 4"):
        make_splits(tmp_path, "0")
    (tmp_path / "Annotations").mkdir()
    for index in range(100):
        (tmp_path / "Annotations" / f"{index:02d}.xml").touch()
    (tmp_path / "Annotations" / "._00.xml").touch()
    counts = make_splits(tmp_path, "0")
    files = [tmp_path / "ImageSets" / "Main" / name for name in ("trainval.txt", "test.txt")]
    assert counts == dict(zip(files, (80, 20), strict=True))
    splits = [path.read_text(encoding="utf-8").split() for path in files]
    assert sorted(splits[0] + splits[1]) == [f"{index:02d}" for index in range(100)]
    assert splits[1][:4] == ["04", "07", "15", "18"]  # pinned: others would be another test set
    files[0].unlink()
    with pytest.raises(ValueError, match=r"test\.txt: already there; nothing is overwritten"):
        make_splits(tmp_path, "0")
    files[1].unlink()
    make_splits(tmp_path, "1")
    assert files[1].read_text(encoding="utf-8").split() != splits[1]


@pytest.mark.parametrize("seed", ["x", "", "1.5", "1_0"])
def test_a_seed_for_splits_is_a_whole_number(tmp_path: Path, seed: str) -> None:
    with pytest.raises(ValueError, match=f"--make-splits is '{seed}', wanted a whole number"):
        make_splits(tmp_path, seed)


def test_voc_files_that_are_missing(voc: VocData, detection_faults: Faults) -> None:
    (voc.root / "Annotations" / "000.xml").unlink()
    (voc.root / "JPEGImages" / "001.jpg").unlink()
    faults = detection_faults(voc)
    assert len(faults) == 2
    assert "000.xml: no such file" in faults[0] and "001.jpg: no such image" in faults[1]
    (voc.root / "ImageSets" / "Main" / "test.txt").unlink()
    assert "test.txt: cannot be read" in detection_faults(voc)[0]


def test_a_wrong_size_an_unknown_class_and_missing_files_are_one_line_each(
    voc: VocData, detection_faults: Faults
) -> None:
    folder = voc.root / "Annotations"
    change(folder / "001.xml", "<width>64<", "<width>6<")
    (fault,) = detection_faults(voc)
    assert "001.jpg: size (64, 48), but " in fault
    for path in folder.iterdir():
        change(path, ">one<", ">eins<")
    faults = detection_faults(voc)
    assert len(faults) == 2
    assert "000.xml: unknown class 'eins'; known: one; 3 objects have it" in faults[0]
    split = voc.root / "ImageSets" / "Main" / "test.txt"
    split.write_text("000.jpg\n001.jpg\n", encoding="utf-8")
    (fault,) = detection_faults(voc)
    assert "000.jpg.xml: no such file; the split lists it (2 of 2 annotations are missing)" in fault
    assert fault.endswith("; a split names images without suffix, such as 000")


@pytest.mark.parametrize("evaluated", [False, True])
def test_boxes_in_fractions_are_one_line(voc: VocData, evaluated: bool) -> None:
    paths = sorted((voc.root / "Annotations").glob("*.xml"))
    for path in paths:
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"<(x|y)(min|max)>(\d+)<", r"<\1\2>0.\3<", text), encoding="utf-8")
    faults = check_set("mine", voc, Needs(evaluated, masks=False)).faults
    (line,) = [fault for fault in faults if "bndbox" in fault]
    assert (
        "objects have bndboxes within the first pixel, in fractions of the image it seems" in line
    )
