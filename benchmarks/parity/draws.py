"""A few drawn pictures with objects, in COCO's and VOC's layout, and detections on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import Tensor

from transfer.config.data import CocoData, VocData

WIDTH, HEIGHT = 96, 72
NUM_IMAGES, NUM_OBJECTS = 6, 5
CLASSES = ("one", "two", "three")
CATEGORY_IDS = (3, 7, 9)
Object = dict[str, Any]


def draw_pictures(folder: Path) -> tuple[CocoData, VocData]:
    """Write the pictures with their objects below `folder`, and return both layouts."""
    root = folder / "voc"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    generator = numpy.random.default_rng(0)
    objects = drawn_objects()
    for image in range(NUM_IMAGES):
        pixels = generator.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=numpy.uint8)
        picture = Image.fromarray(pixels).resize((WIDTH, HEIGHT))
        for one in objects[image]:
            x0, y0, x1, y1 = one["box"]
            picture.paste((60 + 80 * one["class"], 200 - 70 * one["class"], 99), (x0, y0, x1, y1))
        picture.save(root / "JPEGImages" / f"{image:03d}.jpg", quality=95)
        xml = _voc_xml(objects[image])
        (root / "Annotations" / f"{image:03d}.xml").write_text(xml, encoding="utf-8")
    names = "".join(f"{image:03d}\n" for image in range(NUM_IMAGES))
    (root / "ImageSets" / "Main" / "all.txt").write_text(names, encoding="utf-8")
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(_coco(objects)), encoding="utf-8")
    return (
        CocoData(annotations=annotations, images=root / "JPEGImages"),
        VocData(root=root, split="all", class_names=CLASSES),
    )


def drawn_objects() -> list[list[Object]]:
    """Return each picture's objects: class, box x0, y0, x1, y1 in whole pixels, difficult."""
    generator = numpy.random.default_rng(1)
    pictures = []
    for _ in range(NUM_IMAGES):
        objects = []
        for number in range(NUM_OBJECTS):
            w, h = (int(generator.integers(side // 6, side // 2)) for side in (WIDTH, HEIGHT))
            x, y = int(generator.integers(0, WIDTH - w)), int(generator.integers(0, HEIGHT - h))
            box = (x, y, x + w, y + h)
            difficult = int(generator.random() < 0.1)
            objects.append({"class": number % len(CLASSES), "box": box, "difficult": difficult})
        pictures.append(objects)
    return pictures


def drawn_detections(seed: int = 2, per_object: int = 3) -> list[Instances]:
    """Return each picture's detections: moved objects and false ones, boxes, masks and scores.

    Scores have two digits, so that many are equal.
    """
    generator = numpy.random.default_rng(seed)
    pictures = []
    for objects in drawn_objects():
        boxes, scores, classes = [], [], []
        for one in objects * per_object:
            box = numpy.array(one["box"]) + generator.normal(0, 3, size=4)
            x0, y0 = numpy.maximum(box[:2], 0)
            boxes.append(
                [x0, y0, min(WIDTH, max(box[2], x0 + 2)), min(HEIGHT, max(box[3], y0 + 2))]
            )
            scores.append(round(float(generator.random()), 2))
            other = generator.random() < 0.2
            classes.append(int(generator.integers(len(CLASSES))) if other else one["class"])
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(torch.tensor(numpy.array(boxes), dtype=torch.float32))
        instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(classes)
        instances.pred_masks = torch.stack([_mask(box) for box in instances.pred_boxes.tensor])
        pictures.append(instances)
    return pictures


def _mask(box: Tensor) -> Tensor:
    """Return the pixels of a box without its corners."""
    x0, y0, x1, y1 = box.tolist()
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    across, down = (2 * x + 1 - x0 - x1) / (x1 - x0), (2 * y + 1 - y0 - y1) / (y1 - y0)
    return torch.le(across**4 + down**4, 1)


def _coco(objects: list[list[Object]]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, members in enumerate(objects):
        for one in members:
            x0, y0, x1, y1 = one["box"]
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "iscrowd": 0,
                "category_id": CATEGORY_IDS[one["class"]],
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
            })  # fmt: skip
    images = [
        {"id": image, "file_name": f"{image:03d}.jpg", "width": WIDTH, "height": HEIGHT}
        for image in range(len(objects))
    ]
    pairs = zip(CATEGORY_IDS, CLASSES, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    return {"images": images, "annotations": annotations, "categories": categories}


def _voc_xml(objects: list[Object]) -> str:
    """Return a picture's annotation; VOC counts pixels from 1 and names the last one."""
    parts = []
    for one in objects:
        x0, y0, x1, y1 = one["box"]
        parts.append(
            f"<object><name>{CLASSES[one['class']]}</name><pose>x</pose><truncated>0</truncated>"
            f"<difficult>{one['difficult']}</difficult><bndbox><xmin>{x0 + 1}</xmin>"
            f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(parts)}</annotation>"
