"""The parts of a step of the benchmark are those of an iteration."""

import json
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from benchmarks.detection import (
    CASES,
    DATASET,
    PARTS,
    case_config,
    draw_dataset,
    parts_of_a_step,
)
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
    parts = parts_of_a_step(cfg, 1)
    assert tuple(parts) == PARTS and all(seconds > 0 for seconds in parts.values())
