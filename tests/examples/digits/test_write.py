"""Written files: COCO and VOC layouts that agree with each other and with what was drawn."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from examples.digits import write
from examples.digits.draw import draw_crop, draw_scene, load_source_digits, split_digits
from examples.digits.write import CLASS_NAMES
from tests.examples.digits.small import load_coco

# pycocotools 2.0.11 under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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
