"""Pictures of a few fixed images, their objects beside the detections."""

from __future__ import annotations

import colorsys
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps
from pycocotools import mask as coco_mask

from transfer.detection.evaluation import PREDICTIONS

MIN_SIDE, MAX_SIDE = 256, 800
MIN_SCORE = 0.5
GAP = 8
MAX_COMMENT = 10_000  # characters; a JPEG has room for 65,533 bytes
TITLES = ("ground truth", f"detections scoring {MIN_SCORE} or more")
NOTHING = ("no object", f"nothing scores {MIN_SCORE} or more")  # on a picture without any
COLOURS = (
    "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231",
    "#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#fabebe",
)  # fmt: skip


class Shape(NamedTuple):
    """One object: its box `[x, y, width, height]`, class (from 0), label, and mask or None."""

    box: Sequence[float]
    category: int
    label: str
    mask: Any


def write_pictures(
    records: list[dict[str, Any]],
    class_names: Sequence[str],
    category_ids: Mapping[int, int],
    output_dir: Path,
    count: int,
) -> None:
    """Write `pictures/NN-ground_truth.jpg`, `NN-detections.jpg` and `grid.jpg`, both side by side.

    `records` is a set in detectron2's format, of which the first `count` are drawn; detections with
    a score of at least 0.5 come from `predictions.json` in `output_dir`, and `category_ids` says
    which class (from 0) the categories there are. The comment in each file says what is drawn.
    """
    folder = output_dir / "pictures"
    folder.mkdir(exist_ok=True)
    drawn = {record["image_id"]: record for record in records[:count]}
    detected: dict[Any, list[Shape]] = {image: [] for image in drawn}
    predictions = json.loads((output_dir / PREDICTIONS).read_text(encoding="utf-8"))
    for entry in sorted(predictions, key=lambda prediction: float(prediction["score"])):
        if entry["image_id"] in detected and entry["score"] >= MIN_SCORE:
            index = category_ids[entry["category_id"]]
            label = f"{class_names[index]} {100 * entry['score']:.0f}"
            shape = Shape(entry["bbox"], index, label, entry.get("segmentation"))
            detected[entry["image_id"]].append(shape)
    pairs = []
    for number, (image_id, record) in enumerate(drawn.items()):
        with Image.open(record["file_name"]) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
        truth = [_annotated(entry, class_names) for entry in record["annotations"]]
        pair = []
        for name, shapes, nothing in zip(
            ("ground_truth", "detections"), (truth, detected[image_id]), NOTHING, strict=True
        ):
            counts = Counter(class_names[shape.category] for shape in shapes)
            words = ", ".join(f"{many} {label}" for label, many in counts.most_common()) or nothing
            pair.append(draw(image, shapes, nothing))
            path = folder / f"{number:02d}-{name}.jpg"
            pair[-1].save(path, quality=85, comment=words[:MAX_COMMENT])
        pairs.append(tuple(pair))
    grid(pairs).save(folder / "grid.jpg", quality=85)


def _annotated(entry: dict[str, Any], class_names: Sequence[str]) -> Shape:
    x0, y0, *end = entry["bbox"]
    if entry["bbox_mode"].name == "XYXY_ABS":
        end = [end[0] - x0, end[1] - y0]
    index = entry["category_id"]
    return Shape([x0, y0, *end], index, class_names[index], entry.get("segmentation"))


def draw(image: Image.Image, shapes: Sequence[Shape], nothing: str = "") -> Image.Image:
    """Return the image, of 256 to 800 pixels a side, with masks, boxes and labels, or `nothing`."""
    pixels = np.asarray(image).astype(np.float32)
    for shape in shapes:
        mask = _mask(shape.mask, image.size)
        if mask is not None:
            pixels[mask] += 0.45 * (np.array(colour(shape.category), np.float32) - pixels[mask])
    scale = max(1.0, MIN_SIDE / min(image.size))
    scale = min(scale, MAX_SIDE / max(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    picture = Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.LANCZOS)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    if not shapes:
        pen.text((6, 4), nothing, fill="white", font=font, stroke_width=2, stroke_fill="black")
    for shape in shapes:
        x, y, width, height = (scale * value for value in shape.box)
        paint = colour(shape.category)
        pen.rectangle([x, y, x + max(width, 1), y + max(height, 1)], outline=paint, width=2)
        _write_label(pen, font, (x, y), shape)
    return picture


def _write_label(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    corner: tuple[float, float],
    shape: Shape,
) -> None:
    """Write a label above a box, or into its top where there is no room, inside the picture."""
    paint = colour(shape.category)
    room = pen.im.size[0] - pen.textlength(shape.label, font=font) - 2
    place = (max(0, min(corner[0] + 2, room)), max(0, corner[1] - 17))
    pen.rectangle(pen.textbbox(place, shape.label, font=font), fill=paint)
    bright = 0.3 * paint[0] + 0.59 * paint[1] + 0.11 * paint[2] > 110
    pen.text(place, shape.label, fill="black" if bright else "white", font=font)


def grid(pairs: Sequence[tuple[Image.Image, ...]]) -> Image.Image:
    """Return pairs of pictures in rows of two columns, with a title over each."""
    widths = [max(pair[column].width for pair in pairs) for column in range(2)]
    top = 24
    height = top + sum(max(picture.height for picture in pair) + GAP for pair in pairs)
    sheet = Image.new("RGB", (sum(widths) + 3 * GAP, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    lefts = (GAP, widths[0] + 2 * GAP)
    for left, title in zip(lefts, TITLES, strict=True):
        pen.text((left, 4), title, fill="black", font=font)
    for pair in pairs:
        for left, picture in zip(lefts, pair, strict=True):
            sheet.paste(picture, (left, top))
        top += max(picture.height for picture in pair) + GAP
    return sheet


def colour(index: int) -> tuple[int, int, int]:
    """Return a class's colour: the palette first, then hues that stay apart."""
    if index < len(COLOURS):
        red, green, blue = ImageColor.getrgb(COLOURS[index])[:3]
        return red, green, blue
    hue = (index * 0.618034) % 1  # the golden ratio spreads any number of hues
    shade = colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * (index % 2), 0.95)
    return round(255 * shade[0]), round(255 * shade[1]), round(255 * shade[2])


def _mask(shape: Any, size: tuple[int, int]) -> np.ndarray | None:
    """Return a `[H, W]` mask of booleans from polygons or a run-length encoding, or None."""
    if not shape:
        return None
    if isinstance(shape, dict):
        return np.asarray(coco_mask.decode(shape)).astype(bool)
    canvas = Image.new("L", size)
    for polygon in shape:
        ImageDraw.Draw(canvas).polygon([float(value) for value in polygon], fill=1)
    return np.asarray(canvas).astype(bool)
