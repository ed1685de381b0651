"""A detectron2 config on the machine it is for."""

from pathlib import Path

import pytest
import torch

from transfer.detection.cfg import for_this_machine
from transfer.detection.cli import read_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "transfer"


def test_the_cpu_runs_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changes = ["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cuda"]
    cfg = for_this_machine(read_config(str(CONFIGS / "digits_faster_rcnn_voc.yaml"), changes))
    assert cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED is False
