"""COCO's AP of boxes and masks, computed by faster-coco-eval."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

Task = Literal["bbox", "segm"]
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
NO_MASK = {"size": [1, 1], "counts": "1"}
logger = logging.getLogger(__name__)


def load_truth(path: Path) -> COCO:
    """Return the annotations of a COCO file, indexed."""
    return COCO(str(path))


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep python from searching for cycles among a million detections that have none.

    The search, again and again while they are made, takes a fifth of an evaluation.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@collector_paused()
def coco_ap(
    truth: COCO, results: Iterable[dict[str, Any]], task: Task, class_names: Sequence[str] = ()
) -> dict[str, float]:
    """Return AP, AP50, AP75, APs, APm, APl and, of two classes or more, `AP-<class>`, in percent.

    Where the set has no object to find (of a size, of a class) the value is NaN. Masks are sorted
    into sizes by their own area, not by that of their box.

    Args:
        truth: the annotations, as `load_truth` returns them.
        results: detections as COCO writes them: image_id, category_id, score and `bbox`
            `[x, y, width, height]` in pixels or a run-length encoded `segmentation`; left as is.
        task: measured on boxes (`bbox`) or masks (`segm`).
        class_names: in the order of the category ids.

    Raises:
        KeyError: a result lacks what the task measures.

    Example:
        >>> square = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]}
        >>> truth = COCO({
        ...     "images": [{"id": 1, "width": 64, "height": 64}],
        ...     "categories": [{"id": 1, "name": "digit"}],
        ...     "annotations": [{"id": 1, "iscrowd": 0, "area": 1600, **square}],
        ... })
        >>> metrics = coco_ap(truth, [{"score": 0.9, **square}], "bbox")
        >>> {key: round(value) for key, value in metrics.items() if key in ("AP", "APm")}
        {'AP': 100, 'APm': 100}
    """
    predicted = COCO({**truth.dataset, "annotations": _detections(truth, results, task)})
    measure = COCOeval_faster(truth, predicted, task, print_function=logger.debug)
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


def _detections(truth: COCO, results: Iterable[dict[str, Any]], task: Task) -> list[dict[str, Any]]:
    """Return the results as annotations with an id and the area of what the task measures.

    Of a mask that meets no object of its class in its image only the area matters, so a mask
    without runs stands for it: reading the runs of most masks would take most of the time.
    """
    kept = "bbox" if task == "bbox" else "segmentation"
    results = list(results)
    shapes = [result[kept] for result in results]
    if task == "bbox":
        areas = [width * height for _, _, width, height in shapes]
    else:
        areas = coco_mask.area(shapes).tolist()
        meet = {(entry["image_id"], entry["category_id"]) for entry in truth.anns.values()}
        shapes = [
            shape if (result["image_id"], result["category_id"]) in meet else NO_MASK
            for result, shape in zip(results, shapes, strict=True)
        ]
    rows = zip(results, shapes, areas, strict=True)
    return [
        {
            "id": number, "image_id": result["image_id"], "category_id": result["category_id"],
            "score": result["score"], kept: shape, "area": area, "iscrowd": 0,
        }
        for number, (result, shape, area) in enumerate(rows, start=1)
    ]  # fmt: skip


def _percent(value: float) -> float:
    """COCO writes -1 for what cannot be measured."""
    return 100 * float(value) if value > -1 else math.nan
