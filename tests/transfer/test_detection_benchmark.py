"""The benchmark's two loops do the same work, and its parts are those of an iteration."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from transfer import benchmark
from transfer.benchmark import (
    CASES,
    DATASET,
    PARTS,
    case_config,
    draw_dataset,
    parts_of_a_step,
    trainer_against_plain,
)
from transfer.datasets import register
from transfer.trainer import Trainer


def test_all_images_are_one(tmp_path: Path) -> None:
    data = draw_dataset(tmp_path, 64)
    assert len({path.read_bytes() for path in data.images.glob("*.jpg")}) == 1
    annotations = json.loads(data.annotations.read_text(encoding="utf-8"))["annotations"]
    assert len(annotations) == 48
    assert len({json.dumps([entry["bbox"], entry["category_id"]]) for entry in annotations}) == 6


@pytest.mark.slow
def test_both_loops_are_timed_and_learn_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register({DATASET: draw_dataset(tmp_path, 64)})
    cfg = case_config(CASES["Mask R-CNN R50-FPN"], 64, tmp_path, amp=False, workers=0)
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    made: list[Any] = []
    build = benchmark.build_model
    monkeypatch.setattr(benchmark, "build_model", lambda c: made.append(build(c)) or made[0])
    monkeypatch.setattr(benchmark, "WARM_UP", 0)
    steps: list[int] = []
    trained: list[Any] = []
    original = Trainer.run_step

    def run_step(self: Trainer) -> None:
        steps.append(self.iter)
        trained.append(self.model)
        original(self)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    ratio, hooks_ms = trainer_against_plain(cfg, 2)
    assert ratio > 0 and hooks_ms > 0 and steps == [0, 1]
    pairs = list(zip(made[0].parameters(), trained[0].parameters(), strict=True))
    assert len(pairs) > 60 and all(torch.equal(plain, ours) for plain, ours in pairs)
    assert set(parts_of_a_step(cfg, 1)) == set(PARTS)
