"""Speed of COCO's numbers by faster-coco-eval, beside pycocotools on the same sets."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from faster_coco_eval import COCO
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as OriginalCOCO  # noqa: N811  (upstream's spelling)
from pycocotools.cocoeval import COCOeval

from benchmarks.rows import Table, print_rows
from transfer.detection.evaluation import COCO_METRICS, Task, coco_ap

WIDTH, HEIGHT = 640, 480
Entry = dict[str, Any]


def benchmark_evaluation(
    *, images: int = 5_000, detections: int = 100, mask_images: int = 250, rounds: int = 1
) -> list[Table]:
    """Print seconds of both evaluators on the same synthetic sets, and their ratio."""
    columns = ("task", "images", "detections", "pycocotools s:.2f", "ours s:.2f", "ratio:.1f")
    cases: tuple[tuple[Task, int], ...] = (("bbox", images), ("segm", mask_images))
    title = f"COCO's AP on drawn sets, median of {rounds}"
    return [print_rows(title, columns, _rows(cases, detections, rounds))]


def _rows(
    cases: Iterable[tuple[Task, int]], detections: int, rounds: int
) -> Iterator[tuple[Any, ...]]:
    for task, num_images in cases:
        truth, results = synthetic_set(num_images, detections, masks=task == "segm")
        seconds = [compared(truth, results, task) for _ in range(rounds)]
        theirs, ours = (statistics.median(side) for side in zip(*seconds, strict=True))
        ratio = statistics.median(their_s / our_s for their_s, our_s in seconds)
        yield task, num_images, len(results), theirs, ours, ratio


def compared(truth: Entry, results: list[Entry], task: Task) -> tuple[float, float]:
    """Return the seconds of pycocotools and of ours on one set.

    Raises:
        AssertionError: their numbers differ.
    """
    copies = copy.deepcopy((truth, truth))  # pycocotools writes into its annotations
    theirs, their_s = timed(lambda: original_ap(copies[0], results, task))
    ours, our_s = timed(lambda: coco_ap(COCO(copies[1]), results, task))
    if not agree(theirs, ours):
        raise AssertionError(f"the evaluators disagree on {task}: {theirs}, {ours}")
    return their_s, our_s


def timed(action: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float]:
    """Return what the action returns, and its seconds."""
    started = time.perf_counter()
    return action(), time.perf_counter() - started


def agree(theirs: dict[str, float], ours: dict[str, float], tolerance: float = 1e-9) -> bool:
    """Return whether two evaluations are equal, NaN to NaN and numbers up to the tolerance."""
    return theirs.keys() == ours.keys() and all(
        math.isclose(value, ours[key], rel_tol=0, abs_tol=tolerance)
        or (math.isnan(value) and math.isnan(ours[key]))
        for key, value in theirs.items()
    )


def original_ap(
    truth: Entry, results: list[Entry], task: Task, class_names: tuple[str, ...] = ()
) -> dict[str, float]:
    """Return what `coco_ap` returns, computed by pycocotools as detectron2 calls it."""
    dropped = "bbox" if task == "segm" else "segmentation"
    entries = [{key: value for key, value in one.items() if key != dropped} for one in results]
    with contextlib.redirect_stdout(io.StringIO()):
        original = OriginalCOCO()
        original.dataset = truth
        original.createIndex()
        measure = COCOeval(original, original.loadRes(entries), task)
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    values = dict(zip(COCO_METRICS, measure.stats[:6], strict=True))
    for index, name in enumerate(class_names):
        precision = measure.eval["precision"][:, :, index, 0, -1]
        known = precision[precision > -1]
        values[f"AP-{name}"] = np.mean(known) if known.size else -1
    return {key: 100 * float(value) if value > -1 else math.nan for key, value in values.items()}


def synthetic_set(
    num_images: int, detections_per_image: int, *, masks: bool = False, seed: int = 0
) -> tuple[Entry, list[Entry]]:
    """Return a COCO set of 80 classes and detections on it.

    About seven objects an image, of 4 to 400 pixels, one in twenty a crowd, one image in ten
    empty; two detections in five lie on an object, and scores are rounded so that many are equal.
    """
    generator = np.random.default_rng(seed)
    truth: Entry = {
        "info": {},
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
            for number in range(1, num_images + 1)
        ],
        "categories": [{"id": 2 * number + 1, "name": f"class {number}"} for number in range(80)],
        "annotations": [],
    }
    results: list[Entry] = []
    for image in truth["images"]:
        count = 0 if generator.random() < 0.1 else int(generator.integers(1, 14))
        objects = [_object(generator, image["id"], masks) for _ in range(count)]
        for entry in objects:
            entry["iscrowd"] = int(generator.random() < 0.05)
            if masks and entry["iscrowd"]:
                entry["segmentation"] = _runs(entry["segmentation"])
            entry["id"] = len(truth["annotations"]) + 1
            truth["annotations"].append(entry)
        results += [
            _detection(generator, image["id"], objects, masks) for _ in range(detections_per_image)
        ]
    return truth, results


def _object(generator: np.random.Generator, image: int, masks: bool) -> Entry:
    width, height = np.exp(generator.uniform(np.log(4), np.log(400), size=2))
    x, y = generator.uniform(0, WIDTH - width), generator.uniform(0, HEIGHT - height)
    box = [float(value) for value in (x, y, width, height)]
    entry: Entry = {
        "image_id": image,
        "category_id": 2 * int(80 * generator.random() ** 2) + 1,
        "bbox": box,
        "area": 0.7 * box[2] * box[3],
    }
    return entry | ({"segmentation": [_ellipse(box)]} if masks else {})


def _detection(
    generator: np.random.Generator, image: int, objects: list[Entry], masks: bool
) -> Entry:
    if objects and generator.random() < 0.4:
        source = objects[int(generator.integers(len(objects)))]
        scale = np.repeat(source["bbox"][2:], 2).reshape(2, 2).T.ravel()
        moved = np.array(source["bbox"]) + generator.normal(0, 0.12, size=4) * scale
        box = [float(value) for value in (*moved[:2], max(2, moved[2]), max(2, moved[3]))]
        category = source["category_id"]
    else:
        other = _object(generator, image, masks=False)
        box, category = other["bbox"], other["category_id"]
    score = round(float(generator.random()), 2)
    entry: Entry = {"image_id": image, "category_id": category, "bbox": box, "score": score}
    return entry | ({"segmentation": _encoded(_ellipse(box))} if masks else {})


def _ellipse(box: list[float]) -> list[float]:
    """Return a sixteen-sided polygon inside a box."""
    angle = np.linspace(0, 2 * np.pi, 17)[:-1]
    x, y, width, height = box
    points = np.stack([x + width * (1 + np.cos(angle)) / 2, y + height * (1 + np.sin(angle)) / 2])
    flat: list[float] = points.T.ravel().tolist()
    return flat


def _encoded(polygon: list[float]) -> Entry:
    """Return the compressed runs of a polygon, as detectors give their masks."""
    rle = coco_mask.frPyObjects([polygon], HEIGHT, WIDTH)[0]
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _runs(polygons: list[list[float]]) -> Entry:
    """Return the plain runs of a polygon, as COCO gives its crowds."""
    pixels = coco_mask.decode(_encoded(polygons[0])).ravel(order="F")
    borders = np.flatnonzero(np.diff(pixels, prepend=0, append=pixels[-1] ^ 1))
    counts = np.diff(borders, prepend=0)
    return {"size": [HEIGHT, WIDTH], "counts": counts.tolist()}
