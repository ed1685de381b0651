"""One small step of a detector before the start."""

from pathlib import Path

import pytest
import torch

from transfer.detection.cfg import build_faults, weights_faults
from transfer.detection.cli import read_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "transfer"
MASKS = "digits_mask_rcnn_coco.yaml"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ([], ""),
        (["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "round"], "AssertionError: assert"),
        (["INPUT.MASK_FORMAT", "round"], "round"),
        (["INPUT.FORMAT", "XYZ"], "ValueError: image has wrong mode"),
        (["MODEL.RPN.BBOX_REG_LOSS_TYPE", "round"], "ValueError: Invalid dense box regression"),
        (["MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0,)"], "ValueError: not enough values to unpack"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"], "AssertionError: assert"),
        (["MODEL.ROI_HEADS.NAME", "Round"], "No object named 'Round'"),
        (["INPUT.MAX_SIZE_TRAIN", "1", "SOLVER.IMS_PER_BATCH", "1"], "Expected more than 1 value"),
    ],
    ids=lambda value: value[0] if value and isinstance(value, list) else None,
)
def test_what_breaks_a_step_is_told_before_it(changes: list[str], fault: str) -> None:
    cfg = read_config(str(CONFIGS / MASKS), changes)
    state = torch.random.get_rng_state()
    faults = build_faults(cfg, "adamw")
    assert torch.equal(torch.random.get_rng_state(), state)
    if not fault:
        assert faults == []
        return
    (line,) = faults
    assert line.startswith("no detector can be trained with this config: ") and fault in line


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ([], ""),
        (["MODEL.RESNETS.NORM", "FrozenBN"], ""),
        (["MODEL.RESNETS.NORM", "GN"], "entries were not loaded: stem.conv1.norm.running_mean, "),
        (
            ["MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"],
            "has nothing for 4 parameters: backbone.top_block.p6.weight, ",
        ),
    ],
)
def test_what_weights_would_leave_out_follows_from_their_names(
    changes: list[str], fault: str
) -> None:
    faults = weights_faults(read_config(str(CONFIGS / MASKS), changes))
    assert (faults == []) if not fault else fault in faults[0]


@pytest.mark.parametrize(
    "name", ["voc_faster_rcnn_r50_c4_24k.yaml", "coco_mask_rcnn_r101_fpn_1x.yaml"]
)
def test_a_bottleneck_fills_a_c4_and_an_fpn_detector(name: str) -> None:
    assert weights_faults(read_config(str(CONFIGS / name), [])) == []
