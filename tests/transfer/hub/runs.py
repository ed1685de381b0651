"""Runs as the pipeline and `tools/pretrain.py` leave them, without what took time."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.config.kinds import load_config
from pipeline.report.data import results_json
from pipeline.stages.files import read_json, sha256_of, write_json
from pipeline.stages.run_folder import prepare, write_manifest
from pipeline.stages.stage import Stage, identity_of
from pretrain.config.pretrain import PretrainConfig
from tests.pipeline.report.cases import case
from tests.source import ROOT
from tests.transfer.published import save_backbone

DIGEST = "40ed7fe603cf7493" + 48 * "0"
DATA = {"pretrain": {"images": {"by": "content", "num_files": 6000, "digest": DIGEST}}}
MADE = {
    "code": {"commit": "f64c78d3", "dirty": False},
    "packages": {"torch": "2.14.1", "detectron2": "0.6"},
    "host": "secret-host",
}
VERIFICATION = {
    "largest_feature_difference": 2e-7, "limit": 1e-4, "entries_loaded": {"fpn": 120},
    "not_checked": ["proved with FPN only"],
}  # fmt: skip


def recipe() -> PretrainConfig:
    content = load_config(
        ROOT / "configs" / "pretrain" / "digits_cw_rgp.yaml", "pretraining config"
    )
    return PretrainConfig.model_validate(content)


def pretrained(root: Path, slug: str = "cw-rgp") -> Stage:
    """Return a finished pretraining of a pipeline in `root`."""
    config = recipe()
    stage = Stage(
        "pretrain", slug, identity_of(config) | {"world_size": 2, "data_content": DATA},
        config.model_dump(mode="json"), root, backbone=slug,
    )  # fmt: skip
    prepare(stage)
    save_backbone(stage.run_dir / "backbone.pth", "resnet18")
    write_manifest(stage.run_dir, read_json(stage.run_dir / "job.json"), {"loss": 0.5}, MADE)
    line = {"step": 200, "loss": 0.5, "probe/knn/top1": 61.25}
    (stage.run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    return stage


def converted(source: Stage) -> Stage:
    """Return the finished conversion of a pretraining; its weights are no matter."""
    stage = Stage(
        "convert", source.slug, {"format": None}, {"format": None}, source.root,
        {"checkpoint": source}, backbone=source.slug,
    )  # fmt: skip
    prepare(stage)
    for name in ("backbone.pth", "backbone.pkl"):
        save_backbone(stage.run_dir / name, "resnet18")
    write_json(stage.run_dir / "backbone.json", {"verification": VERIFICATION})
    write_manifest(stage.run_dir, read_json(stage.run_dir / "job.json"), {}, MADE)
    return stage


def reported(*stages: Stage, **changes: Any) -> None:
    """Write a report that is made from these stages."""
    folder = stages[0].root / "report"
    folder.mkdir()
    data = replace(
        case(stages[0].slug), command="python tools/run_pipeline.py run x.yaml", **changes
    )
    (folder / "results.json").write_text(results_json(data), encoding="utf-8")
    entries: list[Any] = [
        [stage.name, "done", None, sha256_of(stage.run_dir / "manifest.json")] for stage in stages
    ]
    write_json(folder / "made_from.json", [*entries, ["source", "0"], ["files", {}]])


def by_hand(folder: Path) -> Path:
    """Return the folder of a finished pretraining by `tools/pretrain.py`."""
    folder.mkdir(parents=True)
    save_backbone(folder / "backbone.pth", "resnet18")
    state = {"config": recipe().identity(), "num_images": 6000, "ranks": [{}, {}]}
    torch.save(state, folder / "last.pth")
    return folder
