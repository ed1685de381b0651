"""COCO-style and VOC-style AP by detectron2's evaluators, and the predictions kept as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

PREDICTIONS = "predictions.json"


class PredictionsWriter(DatasetEvaluator):  # type: ignore[misc]
    """Writes all detections as COCO results; `category_id` counts the classes from 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget what was processed."""
        self.results = []

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Keep the detections of one batch."""
        for source, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            self.results += instances_to_coco_json(instances, source["image_id"])

    def evaluate(self) -> None:
        """Gather all processes' detections and write them."""
        parts = comm.gather(self.results, dst=0)
        if comm.is_main_process():
            results = [entry for part in parts for entry in part]
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(results), encoding="utf-8")
            temporary.replace(self.path)


def build_evaluator(name: str, output_dir: Path, masks: bool = False) -> DatasetEvaluators:
    """Return the evaluator that the set's layout asks for, and the writer of predictions.

    `masks` asks for mask AP too, also where nothing was detected.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if MetadataCatalog.get(name).evaluator_type == "pascal_voc":
        measure: DatasetEvaluator = PascalVOCDetectionEvaluator(name)
    else:
        tasks = ("bbox", "segm") if masks else ("bbox",)
        measure = COCOEvaluator(name, tasks, output_dir=str(output_dir), use_fast_impl=False)
    return DatasetEvaluators([measure, PredictionsWriter(output_dir / PREDICTIONS)])


def flat_metrics(
    results: Mapping[str, Mapping[str, float]], num_detections: int
) -> dict[str, float]:
    """Return `{"bbox/AP": ..}` in percent.

    Without a single detection COCO's evaluator gives NaN everywhere; the AP is 0 then.

    Raises:
        ValueError: an average is NaN although something was detected.
    """
    metrics = {}
    for task, values in results.items():
        broken = [key for key in ("AP", "AP50", "AP75") if math.isnan(float(values[key]))]
        if broken and num_detections:
            raise ValueError(
                f"{task} {', '.join(broken)} is NaN with {num_detections} detections; does every "
                "class have an object in the set?"
            )
        for key, value in values.items():
            metrics[f"{task}/{key}"] = 0.0 if broken else float(value)
    return metrics
