"""A task's protocol as published tables name it, and the published rows beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from pipeline.config.references import DetectionTable, References
from pipeline.plan.compatibility import task_value
from pipeline.report.data import AP_METRICS, PublishedProbe, PublishedRow
from transfer.config.data import KNOWN_DATASETS, CocoData, DetectionData, VocData

IMAGES_PER_STEP = 16  # published schedules count iterations of so many images
COCO_1X = 90_000
PUBLISHED_DATA: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {
    (("voc_2007_trainval", "voc_2012_trainval"), ("voc_2007_test",)): "VOC 07+12",
    (("voc_2007_trainval",), ("voc_2007_test",)): "VOC 07",
    (("coco_2017_train",), ("coco_2017_val",)): "COCO 2017",
}
LAYOUTS = {  # by the names of detectron2's backbone and heads
    ("build_resnet_backbone", "Res5ROIHeads"): "C4",
    ("build_resnet_backbone", "Res5ROIHeadsExtraNorm"): "C4",
    ("build_resnet_fpn_backbone", "StandardROIHeads"): "FPN",
}
PLACES = {"annotations", "images", "root"}
DATA: TypeAdapter[CocoData | VocData] = TypeAdapter(DetectionData)
PROBE_METRICS = {
    "linear": "linear/top1",
    "augmented_linear": "augmented_linear/top1",
    "knn": "knn/top1",
}
PUBLISHED_KNN = {"k": 5, "distance": "euclidean"}


class Protocol(NamedTuple):
    """What has to be equal for two rows to stand beside each other.

    The data are of a published name, or `train -> test` as the sets are called; a detector that is
    neither Faster nor Mask R-CNN on a plain ResNet is empty.
    """

    data: str = ""
    detector: str = ""
    schedule: str = ""


def protocol_of(settings: dict[str, Any]) -> Protocol:
    """Return the protocol of a fine-tuning from its settings (`FinetuneConfig` as JSON).

    The schedule is told by the number of images, so that fewer GPUs with smaller batches and more
    iterations keep it. 1x of COCO is 90,000 iterations of 16 images.

    Example:
        >>> sets = {"TRAIN": ["coco_2017_train"], "TEST": ["coco_2017_val"]}
        >>> task = {"DATASETS": sets, "MODEL": {"MASK_ON": True}, "SOLVER": {"MAX_ITER": 180_000}}
        >>> protocol_of({"detectron2": task})
        Protocol(data='COCO 2017', detector='Mask R-CNN R50-C4', schedule='2x')
    """
    task = settings["detectron2"]
    declared = settings.get("datasets", {})
    names = (set_names(task, "TRAIN"), set_names(task, "TEST"))
    as_published = all(_is_as_known(name, declared) for listed in names for name in listed)
    train, test = tuple(sorted(names[0])), names[1]
    data = PUBLISHED_DATA.get((train, test), "") if as_published else ""
    data = data or f"{'+'.join(train)} -> {'+'.join(test)}"
    return Protocol(data, _detector(task), _schedule(task, data))


def ap_rule(settings: dict[str, Any]) -> str:
    """Return in words by which rule a task's AP is measured, as layout and year of its set say."""
    declared = settings.get("datasets", {})
    names = [name for name in set_names(settings["detectron2"], "TEST") if name in declared]
    num_kept = int(task_value(settings["detectron2"], "TEST.DETECTIONS_PER_IMAGE"))
    rules = (DATA.validate_python(declared[name]).ap_rule(num_kept) for name in names)
    return "; ".join(dict.fromkeys(rules))


def set_names(task: dict[str, Any], key: Literal["TRAIN", "TEST"]) -> tuple[str, ...]:
    """Return the sets that a detectron2 config trains on or is measured on."""
    value = task_value(task, f"DATASETS.{key}")
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def _is_as_known(name: str, declared: dict[str, Any]) -> bool:
    """Whether a set is the known one of its name, wherever it lies."""
    if name not in declared or name not in KNOWN_DATASETS:
        return name in KNOWN_DATASETS
    given = DATA.validate_python(declared[name]).model_dump(exclude=PLACES)
    return bool(given == KNOWN_DATASETS[name].model_dump(exclude=PLACES))


def _detector(task: dict[str, Any]) -> str:
    """Return `Mask R-CNN R50-C4`; empty for all but Faster and Mask R-CNN on a plain ResNet."""
    part = {
        key: task_value(task, f"MODEL.{key}")
        for key in (
            "META_ARCHITECTURE", "KEYPOINT_ON", "MASK_ON", "BACKBONE.NAME", "ROI_HEADS.NAME",
            "RESNETS.DEPTH", "RESNETS.NUM_GROUPS", "RESNETS.WIDTH_PER_GROUP",
        )
    }  # fmt: skip
    layout = LAYOUTS.get((str(part["BACKBONE.NAME"]), str(part["ROI_HEADS.NAME"])))
    plain = (part["RESNETS.NUM_GROUPS"], part["RESNETS.WIDTH_PER_GROUP"]) == (1, 64)
    is_rcnn = part["META_ARCHITECTURE"] == "GeneralizedRCNN" and not part["KEYPOINT_ON"]
    if layout is None or not plain or not is_rcnn:
        return ""
    kind = "Mask R-CNN" if part["MASK_ON"] else "Faster R-CNN"
    return f"{kind} R{part['RESNETS.DEPTH']}-{layout}"


def _schedule(task: dict[str, Any], data: str) -> str:
    """Return `1x` or `2x` on COCO, `24k` on others."""
    parts = [task_value(task, f"SOLVER.{key}") for key in ("MAX_ITER", "IMS_PER_BATCH")]
    if not all(isinstance(value, int) for value in parts):
        return ""
    iterations = parts[0] * parts[1] / IMAGES_PER_STEP
    is_coco = data.startswith("COCO")
    return f"{iterations / COCO_1X:.4g}x" if is_coco else f"{iterations / 1000:.4g}k"


def published_rows(
    references: References, protocol: Protocol, named: str | None = None
) -> tuple[PublishedRow, ...]:
    """Return the rows of every table of a task's data, detector and schedule.

    The rows of the table that the task names in `reference:` come too, with the words that differ.
    """
    return tuple(
        _row(table, number, _differing(table, protocol))
        for table in references.detection
        if table.name == named or (table.data, table.detector, table.schedule) == protocol
        for number in range(len(table.rows))
    )


def _differing(table: DetectionTable, protocol: Protocol) -> dict[str, str]:
    """Return what of a table differs from a task, in words by key."""
    words = {
        "data": f"{table.data} data",
        "detector": table.detector,
        "schedule": f"{table.schedule} schedule",
    }
    return {k: text for k, text in words.items() if getattr(table, k) != getattr(protocol, k)}


def _row(table: DetectionTable, number: int, differing: Mapping[str, str]) -> PublishedRow:
    entry = table.rows[number]
    words = [f"{w}, inferred" if key in entry.inferred else w for key, w in differing.items()]
    means = (*entry.box, *(entry.mask or (None,) * 3))
    stds = (*(entry.box_std or (None,) * 3), *(entry.mask_std or (None,) * 3))
    return PublishedRow(
        backbone=entry.backbone,
        label=f"{entry.label} ({'; '.join(words)})" if words else entry.label,
        table=table.name,
        data=table.data,
        detector=table.detector,
        schedule=table.schedule,
        protocol=entry.protocol or table.protocol,
        epochs=entry.epochs,
        views=entry.views,
        search=entry.search,
        inferred=entry.inferred,
        differs=tuple(differing),
        source=entry.source,
        metrics={m: value for m, value in zip(AP_METRICS, means, strict=True) if value is not None},
        stds={m: value for m, value in zip(AP_METRICS, stds, strict=True) if value is not None},
    )


def published_probes(
    references: References, probe: str, settings: Mapping[str, Any], archs: set[str]
) -> tuple[PublishedProbe, ...]:
    """Return the rows of a probe's data and of the architectures that were probed.

    `settings` are those of the probe. Only what it measures in the published way is compared:
    nearest neighbours by their number and distance.
    """
    knn = settings.get("knn")
    measured = {key: settings.get(key) is not None for key in PROBE_METRICS}
    measured["knn"] = knn is not None and all(knn[k] == v for k, v in PUBLISHED_KNN.items())
    rows = []
    for table in references.probes:
        if table.data != settings["data"]["name"] or table.arch not in archs:
            continue
        for entry in table.rows:
            values = {
                metric: getattr(entry, key)
                for key, metric in PROBE_METRICS.items()
                if measured[key] and getattr(entry, key) is not None
            }
            if values:
                rows.append(
                    PublishedProbe(
                        backbone=entry.backbone,
                        label=entry.label,
                        probe=probe,
                        data=table.data,
                        arch=table.arch,
                        protocol=entry.protocol or table.protocol,
                        epochs=entry.epochs,
                        views=entry.views,
                        inferred=entry.inferred,
                        source=entry.source,
                        metrics=values,
                    )
                )
    return tuple(rows)
