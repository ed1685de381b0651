"""Pascal VOC's AP of boxes, computed by detectron2's transcription of the development kit.

The year decides the metric: 2007 takes the mean of 11 precisions, 2012 the area under the curve.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from detectron2.evaluation.pascal_voc_evaluation import parse_rec, voc_eval

from transfer.datasets.register import plain_annotations

THRESHOLDS = tuple(range(50, 100, 5))  # percent of overlap


def detection_line(image: str, score: float, box: Sequence[float]) -> str:
    """Return a line of the development kit's result file; `box` is x0, y0, x1, y1 from 0.

    Its files name a box by its first and last pixel, counted from 1 (so x1 and y1 stay), and keep
    three digits of a score and one of a coordinate.
    """
    x0, y0, x1, y1 = box
    return f"{image} {score:.3f} {x0 + 1:.1f} {y0 + 1:.1f} {x1:.1f} {y1:.1f}"


def voc_ap(
    root: Path,
    split: str,
    year: Literal[2007, 2012],
    class_names: Sequence[str],
    lines: Mapping[int, Iterable[str]],
) -> dict[str, float]:
    """Return AP, AP50, AP75 and, of several classes, `AP-<class>` and `AP50-<class>`, in percent.

    AP is the mean over the thresholds 50, 55 .. 95. `lines` has the detections of each class (by
    its index) as `detection_line` writes them. A class without an object to find (difficult ones
    do not count) is NaN, and the means are over the others.
    """
    values: dict[str, dict[int, float]] = {}
    folder = plain_annotations(root).replace("{", "{{").replace("}", "}}")
    names = root / "ImageSets" / "Main" / f"{split}.txt"
    present = {
        entry["name"]
        for line in names.read_text(encoding="utf-8").splitlines()
        for entry in parse_rec(f"{folder}/{{}}.xml".format(line.strip()))
        if not entry["difficult"]
    }
    with tempfile.TemporaryDirectory(prefix="voc_ap_") as scratch:
        for index, name in enumerate(class_names):
            if name not in present:
                values[name] = dict.fromkeys(THRESHOLDS, math.nan)
                continue
            detections = Path(scratch) / f"{index}.txt"
            detections.write_text("\n".join(lines.get(index, ())), encoding="utf-8")
            values[name] = {
                threshold: 100
                * float(
                    voc_eval(
                        str(detections),
                        f"{folder}/{{}}.xml",
                        str(names),
                        name,
                        ovthresh=threshold / 100,
                        use_07_metric=year == 2007,
                    )[2]
                )
                for threshold in THRESHOLDS
            }
    metrics = {
        "AP": _mean(_mean(of_class.values()) for of_class in values.values()),
        "AP50": _mean(of_class[50] for of_class in values.values()),
        "AP75": _mean(of_class[75] for of_class in values.values()),
    }
    if len(class_names) > 1:
        for name, of_class in values.items():
            metrics |= {f"AP-{name}": _mean(of_class.values()), f"AP50-{name}": of_class[50]}
    return metrics


def _mean(values: Iterable[float]) -> float:
    """Return the mean of what could be measured, NaN where nothing could."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan
