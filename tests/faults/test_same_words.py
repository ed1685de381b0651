"""Refusals of stages for reasons that are known before: `plan` says the same line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml

from pipeline.executors import preflight
from pipeline.executors.preflight import check_before_start
from pipeline.plan.build import load_plan
from pipeline.stages.run_folder import State
from pipeline.worker import reason_of
from pretrain import train
from pretrain.probes import probe
from tests.faults import tiny
from tests.faults.test_malformed import PROBE, check_here
from transfer import convert, finetune

RUN: dict[str, Callable[..., Any]] = {
    "pretrain": train.run_stage,
    "convert": convert.run_stage,
    "probe": probe.run_stage,
    "finetune": finetune.run_stage,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project in which nothing is wrong, with a checkpoint and its converted weights."""
    folder = tmp_path_factory.mktemp("sound")
    tiny.write_project(folder)
    for index, name in enumerate(("train/a", "train/b", "val/a", "val/b")):
        tiny.draw_crops(folder / "data" / "labelled" / name, 2, seed=2 * index)
        (folder / "data" / "labelled" / name / "000.png").rename(
            folder / "data" / "labelled" / name / f"{index}.png"
        )
    (folder / "probe.yaml").write_text(yaml.safe_dump(PROBE), encoding="utf-8")
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, folder / "theirs.pth")
    convert.convert_checkpoint(folder / "theirs.pth", folder / "weights" / "backbone.pkl")
    config = yaml.safe_load((folder / "tiny.yaml").read_text("utf-8"))
    config["backbones"] = [
        {"name": "ours", "pretrain": "ours.yaml"},
        {"name": "theirs", "checkpoint": "theirs.pth"},
        {"name": "random", "random": True},
    ]
    config["probes"] = [{"name": "knn", "config": "probe.yaml"}]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


@pytest.fixture
def project(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(sound, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(preflight.subprocess, "run", check_here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return folder


def planned(overrides: list[str]) -> list[str]:
    """Return the lines with which `plan` refuses."""
    with pytest.raises(ValueError) as refused:
        plan = load_plan(Path("tiny.yaml"), overrides)
        check_before_start(plan, {stage.name: State("missing") for stage in plan.stages})
    return str(refused.value).splitlines()


def with_value(settings: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    inner = with_value(settings.get(head) or {}, rest, value) if rest else value
    return settings | {head: inner}


def said_by_stage(kind: str, backbone: str, changes: dict[str, Any]) -> str:
    """Return why a stage that is started with these changes of its settings fails."""
    stages = load_plan(Path("tiny.yaml"), []).stages
    stage = next(one for one in stages if (one.kind, one.backbone) == (kind, backbone))
    settings = stage.settings
    for key, value in changes.items():
        at = f"detectron2.{key}" if key[:3].isupper() else key
        settings = with_value(settings, at, value)
    inputs = (
        {"weights": Path("weights/backbone.pkl").absolute()} if "weights" in stage.inputs else {}
    )
    with pytest.raises(ValueError) as refused:
        RUN[kind](settings, inputs, Path("out"))
    return reason_of(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"SOLVER.MAX_ITR": 4},
        {"SOLVR.MAX_ITER": 4},
        {"SOLVER.MAX_ITER": "many"},
        {"SOLVER.MAX_ITER": 0},
        {"SOLVER.STEPS": ["a"]},
        {"SOLVER.IMS_PER_BATCH": 3, "SOLVER.REFERENCE_WORLD_SIZE": 8},
        {"SEED": 5},
        {"INPUT.CROP": {"ENABLED": True, "TYPE": "round"}},
        {"MODEL.RPN.BBOX_REG_LOSS_TYPE": "round"},
        {"MODEL.ROI_HEADS.NAME": "Round"},
        {"MODEL.RESNETS.NORM": "XX"},
        {"MODEL.META_ARCHITECTURE": "RetinaNet"},
        {"MODEL.ROI_HEADS.NUM_CLASSES": 5},
        {"SOLVER.AMP.ENABLED": True},
        {"TEST.EXPECTED_RESULTS": [["bbox", "AP", 38.5, 0.2]]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_tasks_override_is_named_and_told_in_the_stages_words(
    project: Path, changes: dict[str, Any]
) -> None:
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]  # JSON is YAML
    lines = planned([f"tasks.0.overrides={json.dumps(overrides)}"])
    reason = said_by_stage("finetune", "random", changes)
    assert any(line.endswith(reason) for line in lines), (lines, reason)
    assert all(f"override {overrides[0].partition('=')[0]}=" in line for line in lines)


def test_what_weights_do_not_fill_is_known_from_their_names(project: Path) -> None:
    changes = {"MODEL.RESNETS.NORM": "GN"}
    lines = planned(["tasks.0.overrides=[MODEL.RESNETS.NORM=GN]"])
    reason = said_by_stage("finetune", "theirs", changes)
    assert "entries were not loaded: stem.conv1.norm.running_mean" in reason
    assert any(line.endswith(reason) for line in lines), (lines, reason)


def test_a_network_of_another_depth_is_refused_by_plan_and_stage(project: Path) -> None:
    changes = {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.RES2_OUT_CHANNELS": 256}
    lines = planned([f"tasks.0.overrides={[f'{key}={value}' for key, value in changes.items()]}"])
    reason = said_by_stage("finetune", "theirs", changes)
    fault = "MODEL.RESNETS.DEPTH is 50, wanted 18"
    start = "tiny.yaml: task boxes: override MODEL.RESNETS.DEPTH=50: does not fit backbone"
    assert fault in reason and f"{start} ours: {fault}" in lines


@pytest.mark.parametrize(
    ("kind", "overrides", "changes"),
    [
        ("pretrain", ["compute.precision=fp16"], {"compute.precision": "fp16"}),
        ("pretrain", ["batch_size=64"], {"batch_size": 64}),
        ("pretrain", ["data.root=nowhere"], {"data.root": "nowhere"}),
        ("probe", ["knn.k=99"], {"knn.k": 99}),
        ("probe", ["data.root=nowhere"], {"data.root": "nowhere"}),
    ],
)
def test_pretraining_and_probes_are_refused_in_their_own_words(
    project: Path, kind: str, overrides: list[str], changes: dict[str, Any]
) -> None:
    entry = "backbones.0" if kind == "pretrain" else "probes.0"
    lines = planned([f"{entry}.overrides={overrides}"])
    reason = said_by_stage(kind, "ours" if kind == "pretrain" else "random", changes)
    ends = reason.replace(str(Path.cwd()) + "/", "")
    assert any(line.replace(str(Path.cwd()) + "/", "").endswith(ends) for line in lines), lines


def test_a_checkpoint_is_refused_in_the_stages_words(project: Path) -> None:
    Path("theirs.pth").write_bytes(b"no checkpoint" * 9)
    lines = planned([])
    assert said_by_stage("convert", "theirs", {}) in lines


@pytest.mark.parametrize("spoil", ["gone", "damaged"])
@pytest.mark.parametrize("image", ["data/tiny_train/0.png", "data/crops/000.png"])
def test_images_are_asked_for_by_plan(project: Path, image: str, spoil: str) -> None:
    if spoil == "damaged":
        Path(image).write_bytes(Path(image).read_bytes()[:100])
    elif "crops" in image:
        shutil.rmtree("data/crops")
    else:
        Path(image).unlink()
    where = Path(image).parent.name if spoil == "gone" and "crops" in image else image
    assert any(where in line for line in planned([]))


def test_a_file_where_results_go_is_refused(project: Path) -> None:
    Path("runs").write_text("", encoding="utf-8")
    assert planned([]) == ["tiny.yaml: output_dir: runs is no folder, and results go below it"]
