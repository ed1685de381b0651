"""Images that a set holds twice, and images that are both trained on and measured on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from transfer.config.data import CocoData, VocData
from transfer.datasets.check import KNOWN_COUNTS, SetReport, check_sets, print_reports
from transfer.datasets.findings import ImageFile, Needs
from transfer.datasets.images import common, repeated


def write(folder: Path, **contents: bytes) -> list[ImageFile]:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return listed(folder, *contents)


def listed(folder: Path, *names: str) -> list[ImageFile]:
    stats = {folder / name: (folder / name).stat() for name in names}
    return [ImageFile(path, s.st_dev, s.st_ino, s.st_size) for path, s in stats.items()]


def test_copies_are_found_by_path_and_by_content(tmp_path: Path) -> None:
    files = write(tmp_path / "a", one=b"1" * 9000, two=b"2" * 9000, three=b"3")
    assert repeated(files) == []
    (tmp_path / "a" / "link").symlink_to("two")
    os.link(tmp_path / "a" / "three", tmp_path / "a" / "name")
    more = files + listed(tmp_path / "a", "link", "name", "one")
    assert [(copy.path.name, of.path.name, is_one) for copy, of, is_one in repeated(more)] == [
        ("one", "one", True), ("link", "two", True), ("name", "three", True),
    ]  # fmt: skip
    others = write(tmp_path / "b", copy=b"1" * 9000, head=b"0" + b"1" * 8999, x=b"x")
    ((copy, of, is_one),) = common(files, others)
    assert (copy.path.name, of.path.name, is_one) == ("copy", "one", False)
    assert common(others, files)[0][0].path.name == "one"
    assert common(files, files[:1])[0] == (files[0], files[0], True)


def test_only_what_may_be_a_copy_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write(tmp_path / "a", a=b"a" * 5, b=b"b" * 6, c=b"c" * 6, d=b"d" * 7)
    test = write(tmp_path / "b", e=b"e" * 6, f=b"f" * 8, g=b"g" * 8)
    opened: list[str] = []
    plain = Path.open

    def counted(path: Path, *arguments: str) -> object:
        opened.append(path.name)
        return plain(path, *arguments)

    monkeypatch.setattr(Path, "open", counted)
    assert common(train, test) == [] and sorted(opened) == ["b", "c", "e"]
    opened.clear()
    assert len(common(train, train)) == 4 and opened == []


def both(train: CocoData | VocData, test: CocoData | VocData) -> dict[str, SetReport]:
    sets = {
        "mine_test": (test, Needs(True, False, train_sets=(("mine_train",),))),
        "mine_train": (train, Needs(False, False)),
    }
    return dict(check_sets(sets))


def test_images_in_train_and_test_are_a_fault(coco: CocoData, voc: VocData) -> None:
    (voc.root / "JPEGImages" / "000.jpg").write_bytes((coco.images / "002.jpg").read_bytes())
    for index in (1, 2):  # of no image of COCO's
        data = (voc.root / "JPEGImages" / f"00{index}.jpg").read_bytes()
        (voc.root / "JPEGImages" / f"00{index}.jpg").write_bytes(data + b"\0")
    reports = both(coco, voc)
    assert reports["mine_train"].faults == []
    (fault,) = reports["mine_test"].faults
    assert fault == (
        f"{voc.root}/ImageSets/Main/test.txt: 1 of 3 images is trained on too, in mine_train "
        "(JPEGImages/000.jpg is a copy of val/002.jpg); "
        "take them out of one of the two"
    )
    (fault,) = both(voc, voc)["mine_test"].faults
    assert "3 of 3 images are trained on too, in mine_train (JPEGImages/000.jpg, JPEG" in fault
    assert "is the same file" not in fault


def test_an_image_twice_is_a_fault_where_it_is_measured_on(coco: CocoData) -> None:
    shutil.copy(coco.images / "000.jpg", coco.images / "002.jpg")
    line = f"{coco.annotations}: 1 of 3 images is in it twice (val/002.jpg is a copy of val/"
    for evaluated in (True, False):
        ((_, report),) = check_sets({"mine": (coco, Needs(evaluated, False))})
        lines, others = (report.faults, report.notes)[:: 1 if evaluated else -1]
        assert len(lines) == 1 and lines[0].startswith(line) and others == []


@pytest.mark.parametrize("copy", [shutil.copy, os.link])
def test_copies_in_published_sets_are_measured_on_as_published(
    coco: CocoData, copy: Callable[[Path, Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN_COUNTS, "coco_2017_val", (3, 3))
    (coco.images / "002.jpg").unlink()
    copy(coco.images / "000.jpg", coco.images / "002.jpg")
    ((_, report),) = check_sets({"coco_2017_val": (coco, Needs(True, False))})
    assert (len(report.faults), len(report.notes)) == ((0, 1) if copy is shutil.copy else (1, 0))


def test_classes_that_are_measured_on_but_not_trained_on_are_noted(
    coco: CocoData, voc: VocData
) -> None:
    for index in range(3):
        data = (voc.root / "JPEGImages" / f"00{index}.jpg").read_bytes()
        (voc.root / "JPEGImages" / f"00{index}.jpg").write_bytes(data + b"\0")
    two = voc.model_copy(update={"class_names": ("one", "two")})
    path = voc.root / "Annotations" / "001.xml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(">one<", ">two<"), encoding="utf-8")
    reports = both(coco, two)
    assert reports["mine_test"].faults == []
    assert reports["mine_test"].notes == [
        f"{voc.root}/ImageSets/Main/test.txt: has objects of two, but mine_train has none; "
        "their AP will be near 0"
    ]


def three(coco: CocoData, voc: VocData) -> dict[str, tuple[CocoData | VocData, Needs]]:
    """Return a test set and the two that a task trains on; all have the same images."""
    train = ("first", "second")
    return {
        "test": (voc, Needs(True, False, train_sets=(train, train))),
        "first": (coco, Needs(False, False)),
        "second": (voc, Needs(False, False)),
    }


def test_images_in_two_training_sets_are_counted(coco: CocoData, voc: VocData) -> None:
    reports = dict(check_sets(three(coco, voc)))
    assert reports["first"].notes == [] and reports["second"].faults == []
    assert reports["second"].notes == [
        f"{voc.root}/ImageSets/Main/test.txt: 3 of 3 images are in first too (JPEGImages/000.jpg "
        "is a copy of val/000.jpg, JPEGImages/001.jpg is a copy of val/001.jpg, JPEGImages/002.jpg "
        "is a copy of val/002.jpg); each is trained on as often"
    ]


@pytest.mark.parametrize("name", ["test", "first", "second"])
def test_a_set_that_is_named_alone_is_compared_with_those_that_are_not(
    coco: CocoData, voc: VocData, name: str
) -> None:
    sets = three(coco, voc)
    ((only, report),) = check_sets(sets, names=[name])
    (fault,) = report.faults
    assert only == name and "3 of 3 images are trained on too, in " in fault
    assert len(report.notes) == (name != "test")
    (voc.root / "Annotations" / "001.xml").write_text("broken", encoding="utf-8")
    ((_, report),) = check_sets(sets, names=["first"])  # faults of others are theirs
    assert len(report.faults) == 1 and "are trained on too, in first" in report.faults[0]


def test_a_line_that_several_sets_have_is_printed_once(
    coco: CocoData, capsys: pytest.CaptureFixture[str]
) -> None:
    coco.annotations.write_text("[]", encoding="utf-8")
    sets = {name: (coco, Needs(False, False)) for name in ("whole", "part", "other")}
    assert not print_reports(sets, "auto", sets)
    out, error = capsys.readouterr()
    assert out == (
        "whole: 0 images (0 decoded), 0 objects: NOT sound\n"
        "part: 0 images (0 decoded), 0 objects: NOT sound, as whole\n"
        "other: 0 images (0 decoded), 0 objects: NOT sound, as whole\n"
    )
    assert error.startswith("whole: ") and error.count("\n") == 1
