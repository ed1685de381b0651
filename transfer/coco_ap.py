"""COCO's AP of boxes and masks, computed by faster-coco-eval."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from faster_coco_eval import COCO, COCOeval_faster

Task = Literal["bbox", "segm"]
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
logger = logging.getLogger(__name__)


def load_truth(path: Path) -> COCO:
    """Return the annotations of a COCO file, indexed."""
    return COCO(str(path))


def coco_ap(
    truth: COCO, results: Iterable[dict[str, Any]], task: Task, class_names: Sequence[str] = ()
) -> dict[str, float]:
    """Return AP, AP50, AP75, APs, APm, APl and, of two classes or more, `AP-<class>`, in percent.

    `results` are COCO results; they stay as they are. Where the set has no object to find (of a
    size, of a class) the value is NaN. Masks are sorted into sizes by their own area, not by that
    of their box. `class_names` are in the order of the category ids.
    """
    dropped = "bbox" if task == "segm" else "segmentation"
    entries = [
        {key: value for key, value in result.items() if key != dropped} for result in results
    ]
    measure = COCOeval_faster(truth, truth.loadRes(entries), task, print_function=logger.debug)
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    metrics = {key: _percent(value) for key, value in zip(METRICS, measure.stats[:6], strict=True)}
    precision = measure.eval["precision"]  # [thresholds, recalls, classes, areas, detections]
    if len(class_names) > 1:
        for index, name in enumerate(class_names):
            values = precision[:, :, index, 0, -1]  # all areas, most detections
            known = values[values > -1]
            metrics[f"AP-{name}"] = _percent(known.mean() if known.size else -1)
    return metrics


def _percent(value: float) -> float:
    """COCO writes -1 for what cannot be measured."""
    return 100 * float(value) if value > -1 else math.nan
