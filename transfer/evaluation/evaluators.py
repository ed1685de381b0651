"""The evaluators that detectron2's loop feeds: AP by the set's layout, predictions kept as JSON."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from transfer.evaluation.coco import Task, coco_ap, load_truth
from transfer.evaluation.voc import detection_line, voc_ap

PREDICTIONS = "predictions.json"
Results = dict[str, dict[str, float]]


class CocoEvaluator(DatasetEvaluator):  # type: ignore[misc]
    """COCO's AP; the predictions name images and categories by the annotation file's ids."""

    def __init__(self, name: str, output_dir: Path, masks: bool) -> None:
        self.annotations = Path(MetadataCatalog.get(name).json_file)
        self.path = output_dir / PREDICTIONS
        self.tasks: tuple[Task, ...] = ("bbox", "segm") if masks else ("bbox",)
        self.detections: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget what was processed."""
        self.detections = []

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Keep the detections of one batch."""
        for source, output in zip(inputs, outputs, strict=True):
            self.detections += instances_to_coco_json(
                output["instances"].to("cpu"), source["image_id"]
            )

    def evaluate(self) -> Results | None:
        """Gather all processes' detections, write them and measure; None on other processes."""
        parts = comm.gather(self.detections, dst=0)
        if not comm.is_main_process():
            return None
        truth = load_truth(self.annotations)
        ids = sorted(truth.getCatIds())
        names = [category["name"] for category in truth.loadCats(ids)]
        found = [
            entry | {"category_id": ids[entry["category_id"]]} for part in parts for entry in part
        ]
        write_predictions(self.path, found)
        return {task: coco_ap(truth, found, task, names) for task in self.tasks}


class VocEvaluator(DatasetEvaluator):  # type: ignore[misc]
    """Pascal VOC's AP; the predictions count the classes from 0 and name images as the split."""

    def __init__(self, name: str, output_dir: Path) -> None:
        self.set = MetadataCatalog.get(name)
        self.path = output_dir / PREDICTIONS
        self.reset()

    def reset(self) -> None:
        """Forget what was processed."""
        self.detections: list[dict[str, Any]] = []
        self.lines: dict[int, list[str]] = defaultdict(list)

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Keep the detections of one batch."""
        for source, output in zip(inputs, outputs, strict=True):
            instances, image = output["instances"].to("cpu"), source["image_id"]
            self.detections += instances_to_coco_json(instances, image)
            boxes = instances.pred_boxes.tensor.numpy()
            found = zip(
                instances.pred_classes.tolist(), instances.scores.tolist(), boxes, strict=True
            )
            for index, score, box in found:
                self.lines[index].append(detection_line(image, score, box))

    def evaluate(self) -> Results | None:
        """Gather all processes' detections, write them and measure; None on other processes."""
        parts = comm.gather((self.detections, self.lines), dst=0)
        if not comm.is_main_process():
            return None
        lines: dict[int, list[str]] = defaultdict(list)
        for _, part in parts:
            for index, found in part.items():
                lines[index] += found
        write_predictions(self.path, [entry for part, _ in parts for entry in part])
        held = self.set
        root = Path(held.dirname)
        return {"bbox": voc_ap(root, held.split, held.year, held.thing_classes, lines)}


def write_predictions(path: Path, results: list[dict[str, Any]]) -> None:
    """Write COCO results in one piece."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(results), encoding="utf-8")
    temporary.replace(path)


def build_evaluator(name: str, output_dir: Path, masks: bool = False) -> DatasetEvaluator:
    """Return the evaluator that the set's layout asks for.

    `masks` asks for mask AP too, also where nothing was detected.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if MetadataCatalog.get(name).evaluator_type == "pascal_voc":
        return VocEvaluator(name, output_dir)
    return CocoEvaluator(name, output_dir, masks)


def flat_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return `{"bbox/AP": ..}` in percent.

    Raises:
        ValueError: an average is NaN, because the set has nothing to detect.
    """
    metrics: dict[str, float] = {}
    for task, values in results.items():
        broken = [key for key in ("AP", "AP50", "AP75") if math.isnan(float(values[key]))]
        if broken:
            raise ValueError(f"{task} {', '.join(broken)} is NaN: the set has no object to detect")
        metrics |= {f"{task}/{key}": float(value) for key, value in values.items()}
    return metrics
