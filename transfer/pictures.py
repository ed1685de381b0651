"""Pictures of a few fixed images: what is there, and what was detected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from transfer.evaluation import PREDICTIONS

MIN_SIDE = 256
MIN_SCORE = 0.5
COLOURS = (
    "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231",
    "#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#fabebe",
)  # fmt: skip


def write_pictures(
    records: list[dict[str, Any]], class_names: list[str], output_dir: Path, count: int
) -> None:
    """Write `pictures/NN-ground_truth.jpg` and `NN-detections.jpg` of the first `count` images.

    `records` is a set in detectron2's format; detections with a score of at least 0.5 come from
    `predictions.json` in `output_dir`.
    """
    folder = output_dir / "pictures"
    folder.mkdir(exist_ok=True)
    predictions = json.loads((output_dir / PREDICTIONS).read_text(encoding="utf-8"))
    for number, record in enumerate(records[:count]):
        truth = [
            (_xywh(entry), class_names[entry["category_id"]], entry.get("segmentation"))
            for entry in record["annotations"]
        ]
        found = [
            (
                entry["bbox"],
                f"{class_names[entry['category_id']]} {100 * entry['score']:.0f}",
                entry.get("segmentation"),
            )
            for entry in predictions
            if entry["image_id"] == record["image_id"] and entry["score"] >= MIN_SCORE
        ]
        for name, objects in (("ground_truth", truth), ("detections", found)):
            with Image.open(record["file_name"]) as image:
                drawn = draw(image.convert("RGB"), objects, class_names)
            drawn.save(folder / f"{number:02d}-{name}.jpg", quality=85)


def draw(
    image: Image.Image, objects: list[tuple[list[float], str, Any]], class_names: list[str]
) -> Image.Image:
    """Return the image, at least 256 pixels wide, with masks, boxes `[x, y, w, h]` and labels."""
    scale = max(1, -(-MIN_SIDE // min(image.size)))
    for _, label, shape in objects:
        mask = _mask(shape, image.size)
        if mask is None:
            continue
        tint = Image.new("RGB", image.size, _colour(label, class_names))
        image.paste(tint, mask=Image.fromarray(mask * np.uint8(110)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=14)
    for (x, y, width, height), label, _ in objects:
        colour = _colour(label, class_names)
        corners = [scale * x, scale * y, scale * (x + width), scale * (y + height)]
        pen.rectangle(corners, outline=colour, width=2)
        place = (corners[0] + 2, max(0, corners[1] - 17))
        pen.rectangle(pen.textbbox(place, label, font=font), fill=colour)
        pen.text(place, label, fill="black", font=font)
    return image


def _xywh(entry: dict[str, Any]) -> list[float]:
    x0, y0, x1, y1 = entry["bbox"]
    if entry["bbox_mode"].name == "XYXY_ABS":
        return [x0, y0, x1 - x0, y1 - y0]
    return [x0, y0, x1, y1]


def _mask(shape: Any, size: tuple[int, int]) -> np.ndarray | None:
    """Return a `[H, W]` mask of 0 and 1 from polygons or a run-length encoding, or None."""
    if not shape:
        return None
    if isinstance(shape, dict):
        return np.asarray(coco_mask.decode(shape))
    canvas = Image.new("L", size)
    for polygon in shape:
        ImageDraw.Draw(canvas).polygon(polygon, fill=1)
    return np.asarray(canvas)


def _colour(label: str, class_names: list[str]) -> tuple[int, ...]:
    index = next((i for i, name in enumerate(class_names) if label.partition(" ")[0] == name), 0)
    return ImageColor.getrgb(COLOURS[index % len(COLOURS)])
