"""Data of reports, shared by the tests of what is made of them."""

import math
from io import StringIO

from rich.console import Console

from pipeline.config.references import load_references
from pipeline.report.data import Curve, ProbeRow, ReportData, ResultRow, TaskInfo
from pipeline.report.published import Protocol, published_rows

VOC = TaskInfo("voc", "Faster R-CNN on VOC", ("bbox/AP50", "bbox/AP", "bbox/AP75"))
COCO = TaskInfo("coco", "Mask R-CNN on COCO", ("bbox/AP", "segm/AP"))
EVIL = "<script>alert('x')</script>"


def row(backbone, task, seed, values, **more):
    metrics = dict(zip(task.metrics, values, strict=True)) if values else {}
    given = {
        "status": "done",
        "metrics": metrics,
        "reason": None,
        "log": None,
        "pictures": (),
        "ground_truth": (),
        "wall_time_s": 65.0,
        "run_dir": f"runs/demo/finetune/{backbone}-{task.name}-{seed}",
        "dirty": False,
        "signature": "0123456789abcdef",
    }
    return ResultRow(backbone, task.name, seed, **(given | more))


def shown(table, width=80):
    """A table as a terminal shows it."""
    console = Console(width=width, file=StringIO())
    console.print(table)
    return console.file.getvalue()


def case(ours="cw-rgp", reason="out of memory"):
    """Two tasks, two seeds; on COCO one fine-tuning of `ours` failed."""
    log = tuple({"step": float(i), "total_loss": 1 / (1 + i), "bbox/AP": i / 9} for i in range(9))
    return ReportData(
        pipeline="demo",
        backbones=("random", ours),
        tasks=(VOC, COCO),
        baseline="random",
        rows=(
            row("random", VOC, 0, (30.0, 16.0, 14.0)),
            row("random", VOC, 1, (32.0, 17.0, 15.0)),
            row(ours, VOC, 0, (50.0, 27.0, 25.0)),
            row(ours, VOC, 1, (53.0, 29.0, 26.0), dirty=True),
            row("random", COCO, 0, (10.0, 9.0)),
            row("random", COCO, 1, (11.0, 8.0)),
            row(ours, COCO, 0, (20.0, math.nan)),
            row(ours, COCO, 1, (), status="failed", reason=reason, log="runs/demo/log.txt"),
        ),
        probes=(ProbeRow(ours, "knn", {"top1": 71.25}),),
        pretraining=(Curve(ours, ours, None, None, ({"step": 1.0, "loss": 2.0, "lr": 0.1},) * 2),),
        finetuning=(Curve(f"{ours} 0", ours, "voc", 0, log),),
        provenance={
            "versions": {"torch": "2.14.1"},
            "commit": "abc",
            "dirty": True,
            "wall_time_s": {"pretrain": 3725.0},
            "configs": {"demo": {"seeds": [0, 1]}},
        },
        command="run_pipeline.py run",
    )


BOX = ("bbox/AP50", "bbox/AP", "bbox/AP75")
MASK = ("segm/AP50", "segm/AP", "segm/AP75")
REFERENCES = load_references()
VOC_0712 = Protocol("VOC 07+12", "Faster R-CNN R50-C4", "24k")
COCO_2X = Protocol("COCO 2017", "Mask R-CNN R50-C4", "2x")
PUBLISHED_VOC = TaskInfo("voc", "VOC", BOX, published_rows(REFERENCES, VOC_0712), "the 11 points'")
PUBLISHED_COCO = TaskInfo("coco", "COCO", BOX + MASK, published_rows(REFERENCES, COCO_2X))
MORE = {"bbox/APs": 1.0, "bbox/APm": 2.0, "bbox/AP-cat": 3.0, "bbox/AP-dog": 5.0}


def paper_row(backbone, task, seed, value):
    metrics = {metric: value + i for i, metric in enumerate(task.metrics)} | MORE
    return ResultRow(
        backbone, task.name, seed, "done", metrics, None, None, (), (), 7200.0,
        f"run/{backbone}-{task.name}-{seed}", False, "0" * 16, num_gpus=8, commit="abc",
        command="run --only x", config={"key": "value"},
    )  # fmt: skip


def paper_case(ours="ours"):
    values = {"random": (20.0, 21.0), ours: (30.0, 32.0)}
    rows = tuple(
        paper_row(name, task, seed, value)
        for name, found in values.items()
        for task in (PUBLISHED_VOC, PUBLISHED_COCO)
        for seed, value in enumerate(found)
    )
    return ReportData(
        "demo", tuple(values), (PUBLISHED_VOC, PUBLISHED_COCO), "random", rows,
        (), (), (), {}, "run",
    )  # fmt: skip
