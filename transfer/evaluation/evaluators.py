"""Evaluators that detectron2's loop feeds: AP by the set's layout, predictions kept as JSON."""

from __future__ import annotations

import math
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
from transfer.files import write_json

PREDICTIONS = "predictions.json"
Results = dict[str, dict[str, float]]


class Evaluator(DatasetEvaluator):  # type: ignore[misc]
    """Detections of all processes, written and measured by the first one."""

    def __init__(self, name: str, output_dir: Path) -> None:
        self.set = MetadataCatalog.get(name)
        self.path = output_dir / PREDICTIONS
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
        return self.measure([detection for part in parts for detection in part])

    def measure(self, detections: list[dict[str, Any]]) -> Results:
        """Write the detections and return AP."""
        raise NotImplementedError


class CocoEvaluator(Evaluator):
    """COCO's AP; the predictions name images and categories by the annotation file's ids."""

    def __init__(self, name: str, output_dir: Path, masks: bool) -> None:
        super().__init__(name, output_dir)
        self.tasks: tuple[Task, ...] = ("bbox", "segm") if masks else ("bbox",)

    def measure(self, detections: list[dict[str, Any]]) -> Results:
        """Write the detections and return AP by COCO's rules."""
        truth = load_truth(Path(self.set.json_file))
        ids = sorted(truth.getCatIds())
        names = [category["name"] for category in truth.loadCats(ids)]
        results = [entry | {"category_id": ids[entry["category_id"]]} for entry in detections]
        write_json(self.path, results)
        return {task: coco_ap(truth, results, task, names) for task in self.tasks}


class VocEvaluator(Evaluator):
    """Pascal VOC's AP; the predictions count the classes from 0 and name images as the split."""

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Keep the detections of one batch, each with its line of a result file."""
        first = len(self.detections)
        super().process(inputs, outputs)
        tensors = (output["instances"].pred_boxes.tensor for output in outputs)
        boxes = (box for tensor in tensors for box in tensor.cpu().numpy())
        for entry, box in zip(self.detections[first:], boxes, strict=True):
            entry["line"] = detection_line(entry["image_id"], entry["score"], box)

    def measure(self, detections: list[dict[str, Any]]) -> Results:
        """Write the detections and return AP by Pascal VOC's rules."""
        lines: dict[int, list[str]] = defaultdict(list)
        for entry in detections:
            lines[entry["category_id"]].append(entry["line"])
        keys = ("image_id", "category_id", "bbox", "score")
        write_json(self.path, [{key: entry[key] for key in keys} for entry in detections])
        root, split = Path(self.set.dirname), self.set.split
        return {"bbox": voc_ap(root, split, self.set.year, self.set.thing_classes, lines)}


def build_evaluator(name: str, output_dir: Path, masks: bool = False) -> DatasetEvaluator:
    """Return the evaluator that the set's layout asks for.

    `masks` asks for mask AP too, also where nothing was detected.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if MetadataCatalog.get(name).evaluator_type == "pascal_voc":
        return VocEvaluator(name, output_dir)
    return CocoEvaluator(name, output_dir, masks)


def flat_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return `{"bbox/AP": ..}` in percent, NaN where a size or a class has no object to detect.

    Averages are over the classes that have objects. Where some have none, `classes/measured` and
    `classes/all` say of how many.

    Raises:
        ValueError: an average is NaN, because the set has nothing to detect.
    """
    metrics: dict[str, float] = {}
    for task, values in results.items():
        broken = [key for key in ("AP", "AP50", "AP75") if math.isnan(float(values[key]))]
        if broken:
            raise ValueError(f"{task} {', '.join(broken)} is NaN: the set has no object to detect")
        metrics |= {f"{task}/{key}": float(value) for key, value in values.items()}
    of_classes = [value for key, value in metrics.items() if key.startswith("bbox/AP-")]
    measured = sum(math.isfinite(value) for value in of_classes)
    if measured < len(of_classes):
        metrics |= {"classes/measured": measured, "classes/all": len(of_classes)}
    return metrics


def without_nan(results: Mapping[str, Mapping[str, float]]) -> Results:
    """Return the results without what could not be measured, as logs keep them."""
    return {
        task: {key: value for key, value in values.items() if not math.isnan(float(value))}
        for task, values in results.items()
    }


def as_json(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics as JSON can hold them: what could not be measured is null, as in manifests."""
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}
