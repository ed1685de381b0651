"""A detectron2 config on the machine it is for."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from transfer.detection.cfg import check_companion, for_this_machine
from transfer.detection.cli import read_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "transfer"


def test_the_cpu_runs_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changes = ["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cuda"]
    cfg = for_this_machine(read_config(str(CONFIGS / "digits_faster_rcnn_voc.yaml"), changes))
    assert cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED is False


@pytest.mark.parametrize(("depth", "contradicts"), [(18, False), (50, True)])
def test_the_stride_counts_where_a_block_has_a_1x1_convolution(
    tmp_path: Path, depth: int, contradicts: bool
) -> None:
    weights = tmp_path / "w.pkl"
    weights.write_bytes(b"w")
    demands = {"MODEL.RESNETS.DEPTH": depth, "MODEL.RESNETS.STRIDE_IN_1X1": False}
    digest = hashlib.sha256(b"w").hexdigest()
    companion = {"output_sha256": digest, "detectron2": demands}
    weights.with_suffix(".json").write_text(json.dumps(companion), encoding="utf-8")
    changes = ["MODEL.RESNETS.DEPTH", str(depth), "MODEL.RESNETS.STRIDE_IN_1X1", "True"]
    cfg = read_config(str(CONFIGS / "digits_faster_rcnn_voc.yaml"), changes)
    if not contradicts:
        return check_companion(cfg, weights)
    with pytest.raises(ValueError, match="STRIDE_IN_1X1 is True, wanted False"):
        check_companion(cfg, weights)
