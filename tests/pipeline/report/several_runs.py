"""Runs that are merged, as folders with a report: same task, backbones told by their bytes."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.report.data import ProbeRow, ReportData, TaskInfo, results_json
from pipeline.report.write import write_files
from tests.pipeline.report.cases import VOC, row

IDENTITY = {"SOLVER": {"MAX_ITER": 100}, "data": {"TEST": [{"digest": "a" * 64}]}}
PROBE = {"knn": {"k": 5}, "data": {"digest": "b" * 64}}
OF_THIS_VERSION = (
    "origins",
    "probe_identities",
    "made_with",
    "sources",
    "published_probe_labels",
)


def data(
    values: Mapping[str, Mapping[int, float]],
    weights: Mapping[str, str | None],
    pipeline: str = "demo",
    task: TaskInfo = VOC,
    **more: object,
) -> ReportData:
    """Return a report: box AP by backbone and seed; `weights` are digests, None of random ones."""
    task = replace(task, identity=task.identity or IDENTITY)
    rows = tuple(
        row(
            name, task, seed, (value + 20, value, value - 1),
            weights={} if weights[name] is None else {"backbone.pkl": weights[name]},
        )
        for name, by_seed in values.items() for seed, value in by_seed.items()
    )  # fmt: skip
    made_with = {"commit": ("c0",), "torch": ("2.1",)}
    baseline = "random" if "random" in values else None
    made = ReportData(
        pipeline, tuple(values), (task,), baseline, rows, (), (), (), {}, "run",
        made_with=made_with, probe_identities={"knn": PROBE},
    )  # fmt: skip
    return replace(made, **more)


def write(folder: Path, content: ReportData) -> Path:
    """Write what is read of a report, without its page and plots."""
    write_files(folder / "report", {"results.json": results_json(content).encode()})
    return folder


def as_older(folder: Path) -> Path:
    """Make a results.json what versions before this one wrote."""
    path = folder / "report" / "results.json"
    content = json.loads(path.read_text("utf-8"))
    for key in OF_THIS_VERSION:
        del content[key]
    for task in content["tasks"]:
        for key in ("identity", "apart", "published_labels"):
            del task[key]
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def edit(folder: Path, change) -> Path:
    """Let `change` edit what a results.json holds."""
    path = folder / "report" / "results.json"
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def probe(name: str, value: float, weights: str | None) -> ProbeRow:
    files = {} if weights is None else {"backbone.pth": weights}
    return ProbeRow(name, "knn", {"knn/top1": value}, files)
