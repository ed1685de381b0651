"""Detections on the digits, from perfect to none, and what evaluators make of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances

from transfer.detection.evaluation import build_evaluator, flat_metrics


def boxes_of(record: dict[str, Any]) -> tuple[list[list[float]], list[int]]:
    """Return the boxes of a record, x and y of two corners, and their classes."""
    boxes = []
    for entry in record["annotations"]:
        x, y, a, b = entry["bbox"]
        boxes.append([x, y, a, b] if entry["bbox_mode"].value == 0 else [x, y, x + a, y + b])
    return boxes, [entry["category_id"] for entry in record["annotations"]]


def evaluate(
    name: str,
    output_dir: Path,
    detect: Callable[[int, list[dict[str, Any]]], Instances],
    masks: bool = False,
) -> dict[str, float]:
    """Return the numbers of what `detect` makes of each image of a registered set."""
    records = DatasetCatalog.get(name)
    evaluator: DatasetEvaluator = build_evaluator(name, output_dir, masks)
    evaluator.reset()
    for index, record in enumerate(records):
        evaluator.process([record], [{"instances": detect(index, records)}])
    return flat_metrics(evaluator.evaluate())


def instances(boxes: list[list[float]], classes: list[int]) -> Instances:
    detections = Instances((128, 128))
    detections.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    detections.scores = torch.full((len(boxes),), 0.9)
    detections.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return detections


def perfect(index: int, records: list[dict[str, Any]]) -> Instances:
    return instances(*boxes_of(records[index]))


def shuffled(index: int, records: list[dict[str, Any]]) -> Instances:
    return instances(*boxes_of(records[(index + 7) % len(records)]))


def nothing(index: int, records: list[dict[str, Any]]) -> Instances:
    return instances([], [])
