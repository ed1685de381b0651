"""Published rows beside a pipeline's own: which tables stand beside which task and probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config.references import DetectionTable, References
from pipeline.report.data import AP_METRICS, PublishedProbe, PublishedRow
from pipeline.report.protocol import Protocol

PROBE_METRICS = {
    "linear": "linear/top1",
    "augmented_linear": "augmented_linear/top1",
    "knn": "knn/top1",
}
PUBLISHED_KNN = {"k": 5, "distance": "euclidean"}


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
