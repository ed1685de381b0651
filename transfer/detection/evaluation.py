"""AP by COCO's and by Pascal VOC's rules, and the evaluators that detectron2's loop feeds.

faster-coco-eval computes COCO's, detectron2's transcription of the development kit VOC's. There the
year decides: 2007 takes the mean of 11 precisions, 2012 the area under the curve.
"""

from __future__ import annotations

import io
import logging
import math
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.pascal_voc_evaluation import parse_rec, voc_eval
from detectron2.utils import comm
from detectron2.utils.file_io import PathHandler, PathManager
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

from transfer.datasets.voc import EDGES, objects_of, read_annotation
from transfer.files import no_collection, write_json

Task = Literal["bbox", "segm"]
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
NO_MASK = {"size": [1, 1], "counts": "1"}
PLAIN = "plain-voc://"  # before a path: the annotation file, for detectron2's evaluation
VOC_THRESHOLDS = tuple(range(50, 100, 5))  # percent of overlap
PREDICTIONS = "predictions.json"
Results = dict[str, dict[str, float]]
logger = logging.getLogger(__name__)


def load_truth(path: Path) -> COCO:
    """Return the annotations of a COCO file, indexed."""
    return COCO(str(path))


@no_collection()
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
    metrics = {
        key: _percent(value) for key, value in zip(COCO_METRICS, measure.stats[:6], strict=True)
    }
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


class PlainAnnotations(PathHandler):  # type: ignore[misc]
    """Annotation files as detectron2's evaluation reads them: what it wants and no one says is 0.

    It stops at an object without pose, truncated or difficult, and at the pixel `30.0`.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PLAIN]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> io.StringIO:
        tree, _size = read_annotation(Path(path.removeprefix(PLAIN)))
        root = ET.Element("annotation")
        for entry in objects_of(tree):
            element = ET.SubElement(root, "object")
            values = {"name": entry.name, "pose": "", "truncated": 0}
            for key, value in (values | {"difficult": int(entry.is_difficult)}).items():
                ET.SubElement(element, key).text = str(value)
            box = ET.SubElement(element, "bndbox")
            for key, edge in zip(EDGES, entry.edges, strict=True):
                ET.SubElement(box, key).text = f"{edge:.0f}"
        return io.StringIO(ET.tostring(root, encoding="unicode"))


def plain_annotations(root: Path) -> str:
    """Return the folder under which detectron2's evaluation finds a set's annotations in full."""
    PathManager.register_handler(PlainAnnotations(), allow_override=True)
    return f"{PLAIN}{root / 'Annotations'}"


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
                values[name] = dict.fromkeys(VOC_THRESHOLDS, math.nan)
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
                for threshold in VOC_THRESHOLDS
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
