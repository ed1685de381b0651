"""Pictures show what is there and what was found, each object in its class's colour."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as coco_mask

from transfer.detection.evaluation import PREDICTIONS
from transfer.detection.pictures import colour, draw, grid, write_pictures

NAMES = ["potted plant", "potted rose", "rake"]


def near(pixel: Any, wanted: Any, slack: int = 90) -> bool:
    return bool(np.abs(np.asarray(pixel, int) - wanted).max() <= slack)


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., dict[str, Image.Image]]:
    """Draw one black image of 200 x 300 pixels with one object and one detection on it."""

    def make(exif: Image.Exif | None = None, **changes: Any) -> dict[str, Image.Image]:
        size = (200, 300) if exif is None else (300, 200)
        Image.new("RGB", size).save(tmp_path / "a.jpg", exif=exif or b"", quality=95)
        record = {
            "file_name": str(tmp_path / "a.jpg"), "image_id": "a",
            "annotations": [
                {"bbox": [20, 40, 100, 90], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1,
                 "segmentation": [[20, 40, 100, 40, 100, 90, 20, 90]]},
            ],
        }  # fmt: skip
        pixels = np.zeros((300, 200), np.uint8, order="F")
        pixels[150:250, 50:150] = 1
        runs = coco_mask.encode(pixels)
        detection = {
            "image_id": "a", "category_id": 30, "bbox": [50, 150, 100, 100], "score": 0.7,
            "segmentation": {"size": runs["size"], "counts": runs["counts"].decode()},
        } | changes  # fmt: skip
        (tmp_path / PREDICTIONS).write_text(json.dumps([detection]), encoding="utf-8")
        write_pictures([record], NAMES, {10: 0, 20: 1, 30: 2}, tmp_path, 6)
        return {
            path.stem: Image.open(path).convert("RGB")
            for path in (tmp_path / "pictures").glob("*.jpg")
        }

    return make


def test_masks_and_boxes_lie_where_the_objects_are(
    pictures: Callable[..., dict[str, Image.Image]],
) -> None:
    made = pictures()
    assert set(made) == {"00-ground_truth", "00-detections", "grid"}
    truth, found = made["00-ground_truth"], made["00-detections"]
    scale = 256 / 200
    assert truth.size == found.size == (256, 384)
    tinted = [round(0.45 * part) for part in colour(2)]
    for x, y, inside in ((100, 200, True), (60, 240, True), (30, 200, False), (100, 280, False)):
        pixel = found.getpixel((round(x * scale), round(y * scale)))
        assert near(pixel, tinted, 30) is inside, (x, y, pixel)
    assert near(found.getpixel((round(100 * scale), round(250 * scale))), colour(2))
    assert near(truth.getpixel((round(20 * scale), round(70 * scale))), colour(1))
    assert near(truth.getpixel((round(60 * scale), round(70 * scale))), [
        round(0.45 * part) for part in colour(1)
    ], 30)  # fmt: skip


def test_the_grid_has_both_beside_each_other(
    pictures: Callable[..., dict[str, Image.Image]],
) -> None:
    made = pictures()
    sheet = made["grid"]
    assert sheet.size == (2 * 256 + 3 * 8, 24 + 384 + 8)
    for left, name in ((8, "00-ground_truth"), (2 * 8 + 256, "00-detections")):
        part = sheet.crop((left, 24, left + 256, 24 + 384))
        difference = np.abs(np.asarray(part, int) - np.asarray(made[name], int))
        assert difference.mean() < 3
    other = Image.new("RGB", (400, 100))
    assert grid([(other, other), (sheet, other)]).width == sheet.width + 400 + 3 * 8


def test_detections_below_one_half_are_left_out(
    pictures: Callable[..., dict[str, Image.Image]],
) -> None:
    without, scored = (pictures(score=score)["00-detections"] for score in (0.49, 0.51))
    assert np.asarray(without)[40:].max() < 10 and np.asarray(scored)[40:].max() > 100


def test_a_picture_without_any_says_so(
    pictures: Callable[..., dict[str, Image.Image]], tmp_path: Path
) -> None:
    """In its corner, and in its comment; the comment of others counts what is drawn."""
    texts = [np.asarray(pictures(score=score)["00-detections"])[:24] for score in (0.49, 0.51)]
    assert texts[0].max() > 200 and texts[1].max() < 10
    assert 100 < np.nonzero(texts[0].max(axis=(0, 2)) > 200)[0].max() < 250  # it fits
    words = {}
    for score in (0.49, 0.51):
        pictures(score=score)
        for path in (tmp_path / "pictures").glob("00-*.jpg"):
            with Image.open(path) as file:
                words[path.stem, score] = file.info["comment"].decode()
    assert words["00-detections", 0.49] == "nothing scores 0.5 or more"
    assert words["00-detections", 0.51] == "1 rake"
    assert words["00-ground_truth", 0.51] == "1 potted rose"


def test_an_image_is_turned_as_the_detector_saw_it(
    pictures: Callable[..., dict[str, Image.Image]],
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pictures(exif)["00-detections"].size == (256, 384)


def test_large_images_shrink_and_colours_differ() -> None:
    assert draw(Image.new("RGB", (2000, 1000)), []).size == (800, 400)
    assert draw(Image.new("L", (30, 3000)).convert("RGB"), []).size == (8, 800)
    assert len({colour(index) for index in range(80)}) == 80
