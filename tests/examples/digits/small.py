"""Sizes of a small drawing of the digits, and its annotations as pycocotools reads them."""

from pycocotools.coco import COCO

from examples.digits.build import Sizes

SMALL = Sizes(train_scenes=12, val_scenes=7, unlabeled=25, train_crops=20, val_crops=15)


def load_coco(root, split):
    return COCO(str(root / "coco" / "annotations" / f"instances_{split}2017.json"))
