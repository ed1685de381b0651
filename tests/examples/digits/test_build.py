"""The embedded data set as files: two layouts that agree, built once, whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from examples.digits import write
from examples.digits.build import Sizes, build_digits, digest
from examples.digits.draw import draw_crop, draw_scene, load_source_digits, split_digits
from examples.digits.write import CLASS_NAMES

# pycocotools 2.0.11 under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SMALL = Sizes(train_scenes=12, val_scenes=7, unlabeled=25, train_crops=20, val_crops=15)
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    return root, build_digits(root, sizes=SMALL)


def load_coco(root, split):
    return COCO(str(root / "coco" / "annotations" / f"instances_{split}2017.json"))


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


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_masks_and_boxes_are_the_drawn_ones(built, split):
    root, _ = built
    coco = load_coco(root, split)
    digits = load_source_digits()
    pool = split_digits(digits.labels)[split]
    assert [(c["id"], c["name"]) for c in coco.loadCats(coco.getCatIds())] == list(
        enumerate(CLASS_NAMES, 1)
    )
    for index, image_id in enumerate(coco.getImgIds()):
        scene = draw_scene(digits, pool, f"scenes/{split}", index)
        image = coco.loadImgs(image_id)[0]
        assert image["file_name"] == f"{image_id:012d}.jpg"
        stored = Image.open(root / "coco" / f"{split}2017" / image["file_name"])
        assert stored.size == (image["width"], image["height"])
        difference = np.asarray(stored, dtype=float) - scene.image
        assert np.abs(difference).mean() < 2  # the right picture, up to JPEG
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert len(annotations) == len(scene.digits)
        for annotation, digit in zip(annotations, scene.digits, strict=True):
            mask = coco.annToMask(annotation).astype(bool)
            assert np.array_equal(mask, digit.scene_mask())
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == list(digit.box)
            assert annotation["category_id"] == digits.labels[annotation["digit_index"]] + 1
            assert annotation["iscrowd"] == 0
            assert isinstance(annotation["segmentation"], list)


def test_no_digit_is_in_both_splits(built):
    root, _ = built
    used = [
        {annotation["digit_index"] for annotation in load_coco(root, split).anns.values()}
        for split in ("train", "val")
    ]
    assert used[0]
    assert used[1]
    assert not used[0] & used[1]


@pytest.mark.parametrize(("coco_split", "voc_split"), [("train", "trainval"), ("val", "test")])
def test_voc_holds_the_same_images_and_boxes(built, coco_split, voc_split):
    root, _ = built
    voc = root / "VOC2007"
    coco = load_coco(root, coco_split)
    names = (voc / "ImageSets" / "Main" / f"{voc_split}.txt").read_text("utf-8").split()
    assert names == [f"{image_id:06d}" for image_id in coco.getImgIds()]
    for name in names:
        tree = ElementTree.parse(voc / "Annotations" / f"{name}.xml").getroot()
        assert tree.findtext("filename") == f"{name}.jpg"
        image = coco.loadImgs(int(name))[0]
        assert [int(tree.findtext(f"size/{key}")) for key in ("width", "height", "depth")] == [
            image["width"],
            image["height"],
            3,
        ]
        jpeg = (voc / "JPEGImages" / f"{name}.jpg").read_bytes()
        assert jpeg == (root / "coco" / f"{coco_split}2017" / image["file_name"]).read_bytes()
        from_voc = []
        for node in tree.findall("object"):
            assert (node.findtext("difficult"), node.findtext("truncated")) == ("0", "0")
            left, top, right, bottom = (
                float(node.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")
            )
            # detectron2's reader: corners from 0, the right and bottom ones excluded
            from_voc.append((node.findtext("name"), [left - 1, top - 1, right, bottom]))
        from_coco = []
        for annotation in coco.loadAnns(coco.getAnnIds(int(name))):
            x, y, width, height = annotation["bbox"]
            label = CLASS_NAMES[annotation["category_id"] - 1]
            from_coco.append((label, [x, y, x + width, y + height]))
        assert from_voc == from_coco


def test_a_box_of_one_pixel_in_the_corner_is_1_1_1_1_in_voc():
    from examples.digits.draw import PlacedDigit, Scene

    digit = PlacedDigit(5, 3, 0, 0, np.ones((1, 1), dtype=bool))
    scene = Scene(np.zeros((128, 128, 3), dtype=np.uint8), (digit,))
    tree = ElementTree.fromstring(write.voc_annotation(scene, "000001"))
    assert [node.text for node in tree.find("object/bndbox")] == ["1", "1", "1", "1"]
    assert tree.findtext("object/name") == "three"
    assert write.coco_annotation(digit, 1, 10)["bbox"] == [0, 0, 1, 1]


def test_voc_train_and_val_part_the_training_scenes(built):
    main = built[0] / "VOC2007" / "ImageSets" / "Main"
    sets = {path.stem: path.read_text("utf-8").split() for path in main.glob("*.txt")}
    assert set(sets) == {"trainval", "train", "val", "test"}
    assert sets["train"] + sets["val"] == sets["trainval"]
    assert len(sets["train"]) == 9
    assert not set(sets["trainval"]) & set(sets["test"])


def test_crops_are_stored_without_loss_under_their_label(built):
    root, _ = built
    digits = load_source_digits()
    pools = split_digits(digits.labels)
    for split, pool in (("crops/train", "train"), ("crops/val", "val")):
        for path in (root / split).glob("*/*.png"):
            index = int(path.stem)
            digit_index = int(pools[pool][index])
            assert path.parent.name == str(digits.labels[digit_index])
            drawn = draw_crop(digits, digit_index, split, index)
            assert np.array_equal(np.asarray(Image.open(path)), drawn)


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


@pytest.mark.slow
def test_the_whole_data_set_has_the_published_counts(tmp_path):
    counts = build_digits(tmp_path / "digits")["counts"]
    assert counts == {
        "train_scenes": 80,
        "val_scenes": 150,
        "unlabeled": 6000,
        "train_crops": 1500,
        "val_crops": 800,
        "train_objects": 206,
        "val_objects": 372,
        "train_digits": 1195,
        "val_digits": 602,
    }
