"""The parts of a step of the benchmark are those of an iteration; inference; the JSON."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from benchmarks import detection
from benchmarks.command import main
from benchmarks.detection import (
    CASES,
    DATASET,
    PARTS,
    PRECISIONS,
    case_config,
    draw_dataset,
    measured,
    take_step,
)
from benchmarks.trainer import Cost
from transfer.detection.loader import register


def small_case(folder: Path, size: int) -> CfgNode:
    register({DATASET: draw_dataset(folder, size)})
    return case_config(CASES["Mask R-CNN R50-FPN"], size, folder, precision="float32", workers=0)


def test_all_images_are_one(tmp_path: Path) -> None:
    data = draw_dataset(tmp_path, 64)
    assert len({path.read_bytes() for path in data.images.glob("*.jpg")}) == 1
    annotations = json.loads(data.annotations.read_text(encoding="utf-8"))["annotations"]
    assert len(annotations) == 48
    assert len({json.dumps([entry["bbox"], entry["category_id"]]) for entry in annotations}) == 6


@pytest.mark.slow
def test_the_parts_of_a_step_of_a_detector_that_learns_nothing(tmp_path: Path) -> None:
    cfg = small_case(tmp_path, 64)
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    assert cfg.SOLVER.BASE_LR == 0
    parts, inference, peak = measured(cfg, 1)
    assert tuple(parts) == PARTS and all(seconds > 0 for seconds in parts.values())
    assert inference > 0 and peak > 100


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize(("enabled", "scale"), [(True, 8.0), (False, 1.0)])
def test_a_step_scales_the_loss_as_the_trainer_does(enabled: bool, scale: float) -> None:
    weight, grads = torch.nn.Parameter(torch.ones(2)), []
    trainer: Any = SimpleNamespace(
        cfg=SimpleNamespace(SOLVER=SimpleNamespace(AMP=SimpleNamespace(ENABLED=enabled))),
        model=lambda _: {"loss": 3 * weight.sum()},
        optimizer=torch.optim.SGD([weight], lr=0.1),
        _trainer=SimpleNamespace(),
    )
    if enabled:  # a trainer without AMP has none
        trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loss = take_step(trainer, [], lambda: grads.append(deepcopy(weight.grad)))
    assert grads[0] is None and grads[1].tolist() == [3 * scale] * 2
    assert loss.item() == 6 and weight.tolist() == pytest.approx([0.7, 0.7])


def test_the_json_has_the_loops_and_a_row_for_each_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, parts = Cost(10.0, (1.0, 2.0, 3.0)), dict.fromkeys(PARTS, 0.25)
    monkeypatch.setattr(detection, "trainer_cost_here", lambda: cost)
    monkeypatch.setattr(detection, "measured", lambda cfg, rounds: (parts, 0.1, 300.0))
    path = tmp_path / "detection.json"
    assert main(["detection", "--rounds", "1", "--json", str(path)]) == 0
    loops, table = json.loads(path.read_text(encoding="utf-8"))["tables"]
    assert loops["rows"] == [cost.numbers()] and table["about"]["device"]
    assert len(table["rows"]) in (len(CASES), len(CASES) * len(PRECISIONS))  # CPU, GPU
    expected = {"step": 1.0, "images/s": 2.0, "trainer adds %": 0.2, "inference s": 0.1}
    for row in table["rows"]:
        assert row.items() >= (parts | expected | {"peak MB": 300.0}).items()
