"""The embedded data set as a folder: built once, whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.digits import write
from examples.digits.build import Sizes, _crops, build_digits, digest
from examples.digits.draw import draw_crop, load_source_digits, split_digits
from tests.examples.digits.small import SMALL, load_coco

# pycocotools 2.0.11 under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
REPOSITORY = Path(__file__).parents[3]


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_default_sizes_are_the_published_ones():
    assert Sizes() == Sizes(80, 150, 6000, 1500, 800)


def test_index_counts_what_is_there(built):
    root, index = built
    assert json.loads((root / "index.json").read_text(encoding="utf-8")) == index
    assert (index["name"], index["version"]) == ("digits", 1)
    counts = index["counts"]
    for split in ("train", "val"):
        coco = load_coco(root, split)
        assert len(coco.imgs) == counts[f"{split}_scenes"]
        assert len(list((root / "coco" / f"{split}2017").glob("*.jpg"))) == len(coco.imgs)
        assert len(coco.anns) == counts[f"{split}_objects"]
        assert len(list((root / "crops" / split).glob("[0-9]/*.png"))) == counts[f"{split}_crops"]
    assert len(list((root / "unlabeled").glob("*.png"))) == counts["unlabeled"] == 25
    assert len(list((root / "VOC2007" / "JPEGImages").iterdir())) == 12 + 7
    assert index["sha256"] == digest(root)


def test_two_builds_are_byte_for_byte_equal(built, tmp_path):
    build_digits(tmp_path / "again", sizes=SMALL)
    assert contents(tmp_path / "again") == contents(built[0])


def test_the_digest_sees_a_changed_byte_and_a_changed_name(built, tmp_path):
    root = tmp_path / "copy"
    build_digits(root, sizes=SMALL)
    before = digest(root)
    picture = root / "unlabeled" / "000003.png"
    picture.rename(picture.with_name("000003b.png"))  # still between its neighbours
    assert digest(root) != before
    picture.with_name("000003b.png").rename(picture)
    assert digest(root) == before
    picture.write_bytes(picture.read_bytes()[:-1] + b"\0")
    assert digest(root) != before


def test_a_second_call_changes_nothing_and_force_builds_anew(tmp_path):
    root = tmp_path / "digits"
    index = build_digits(root, sizes=SMALL)
    mark = root / "unlabeled" / "mark"
    mark.touch()
    assert build_digits(root, sizes=SMALL) == index
    assert mark.exists()
    assert build_digits(root, sizes=SMALL, force=True) == index
    assert not mark.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_an_empty_folder_is_filled(tmp_path):
    build_digits(tmp_path / "digits", sizes=SMALL)
    (tmp_path / "empty").mkdir()
    build_digits(tmp_path / "empty", sizes=SMALL)
    assert contents(tmp_path / "empty") == contents(tmp_path / "digits")


def test_of_two_builds_at_once_the_slower_one_takes_what_is_there(tmp_path, monkeypatch):
    root, write_crops = tmp_path / "digits", write.write_crops

    def overtaken(folder, crops):
        monkeypatch.setattr(write, "write_crops", write_crops)
        quicker = build_digits(root, sizes=SMALL)
        (root / "mark").touch()
        assert quicker["counts"]["unlabeled"] == 25
        return write_crops(folder, crops)

    monkeypatch.setattr(write, "write_crops", overtaken)
    assert build_digits(root, sizes=SMALL) == json.loads((root / "index.json").read_text("utf-8"))
    assert (root / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_not_ours_is_left_alone(tmp_path, force):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds no index\.json that names the data set 'digits'"):
        build_digits(tmp_path, sizes=SMALL, force=force)
    assert contents(tmp_path) == {"photo.jpg": b"mine"}


@pytest.mark.parametrize("text", ["", "[]", '{"name": "cifar"}', "{"])
def test_a_foreign_index_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="left as it is"):
        build_digits(tmp_path, sizes=SMALL, force=True)


def test_another_version_or_size_asks_for_force(tmp_path):
    root = tmp_path / "digits"
    index = build_digits(root, sizes=SMALL)
    with pytest.raises(ValueError, match=r"counts .*'train_scenes': 12.* wanted .*80.*--force"):
        build_digits(root)
    (root / "index.json").write_text(json.dumps(index | {"version": 0}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"version 0, wanted 1; .*--force"):
        build_digits(root, sizes=SMALL)


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_build_leaves_everything_as_it_was(tmp_path, monkeypatch, existing):
    root = tmp_path / "digits"
    if existing:
        build_digits(root, sizes=SMALL)
    before = contents(tmp_path)

    def stop(folder, _crops):
        assert folder.is_relative_to(tmp_path)  # beside its place, so that a rename is enough
        assert not folder.is_relative_to(root)
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "write_crops", stop)
    with pytest.raises(KeyboardInterrupt):
        build_digits(root, sizes=SMALL, force=existing)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["digits"] if existing else [])


def test_the_tool_refuses_in_one_line_with_code_2(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    command = [sys.executable, "tools/make_digits.py", "--output-dir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr
    assert done.stdout == ""


def test_all_published_scenes_have_the_published_digits(tmp_path):
    # the crops are as many as `Sizes` says, and are not drawn here
    counts = build_digits(tmp_path / "digits", sizes=Sizes(unlabeled=0, train_crops=0, val_crops=0))
    assert counts["counts"] == {
        "train_scenes": 80,
        "val_scenes": 150,
        "unlabeled": 0,
        "train_crops": 0,
        "val_crops": 0,
        "train_objects": 206,
        "val_objects": 372,
        "train_digits": 1195,
        "val_digits": 602,
    }


def test_crops_beyond_the_digits_begin_with_the_first_again():
    digits = load_source_digits()
    few = split_digits(digits.labels)["val"][:3]
    crops = list(_crops(digits, few, "crops/val", 5))
    labels = [int(digits.labels[few[place]]) for place in (0, 1, 2, 0, 1)]
    assert [name for name, _ in crops] == [f"{label}/{i:06d}.png" for i, label in enumerate(labels)]
    for index, (_, picture) in enumerate(crops):
        drawn = draw_crop(digits, int(few[index % 3]), "crops/val", index)
        assert np.array_equal(picture, drawn)
    assert not np.array_equal(crops[3][1], crops[0][1])  # another crop of the same digit
