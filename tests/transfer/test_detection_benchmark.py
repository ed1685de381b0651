"""The benchmark's two loops do the same work, and its parts are those of an iteration."""

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
    original = Trainer.run_step

    def run_step(self: Trainer) -> None:
        steps.append(self.iter)
        original(self)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    ratio, hooks_ms = trainer_against_plain(cfg, 2)
    assert ratio > 0 and hooks_ms > 0 and steps == [0, 1]
    assert not any(bool(torch.isnan(p).any()) for p in made[0].parameters())
    assert set(parts_of_a_step(cfg, 1)) == set(PARTS)
