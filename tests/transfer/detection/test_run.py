"""Preparations of a training: scaling, loaded weights, lost checkpoints, the rule for memory."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from torch import nn

from transfer.detection.cfg import weights_fault
from transfer.detection.cli import read_config
from transfer.detection.run import (
    check_loaded,
    effective_config,
    memory_estimate,
)
from transfer.finetune import repair_last_checkpoint

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "transfer"


def test_detectron2_scales_what_it_says_it_scales() -> None:
    cfg = read_config(str(CONFIGS / "coco_mask_rcnn_r50_fpn_1x.yaml"), [])
    scaled = DefaultTrainer.auto_scale_workers(cfg, 1).SOLVER
    assert (scaled.IMS_PER_BATCH, scaled.BASE_LR, scaled.MAX_ITER) == (2, 0.0025, 720_000)


def test_only_new_heads_may_start_without_weights(tmp_path: Path) -> None:
    model = nn.ModuleDict({
        "backbone": nn.ModuleDict({"fpn_lateral2": nn.Linear(1, 1), "res2": nn.Linear(1, 1)}),
        "roi_heads": nn.ModuleDict({"box_head": nn.Linear(1, 1)}),
    })  # fmt: skip
    state = {name: value.clone() for name, value in model.state_dict().items()}
    path = tmp_path / "weights.pth"

    def save(*names: str) -> None:
        torch.save({"model": {name: state[name] for name in names}}, path)

    save("backbone.res2.weight", "backbone.res2.bias")
    check_loaded(model, path)
    with pytest.raises(ValueError, match=r"has nothing for 4 parameters: .*box_head\.bias"):
        check_loaded(model, path, whole=True)
    save("backbone.res2.weight")
    with pytest.raises(ValueError, match=r"nothing for 1 parameters: backbone\.res2\.bias"):
        check_loaded(model, path)
    state["backbone.res2.bias"] += 1
    save("backbone.res2.weight", "backbone.res2.bias")
    with pytest.raises(ValueError, match=r"1 entries were not loaded: backbone\.res2\.bias"):
        check_loaded(model, path)
    assert weights_fault("") is None and weights_fault(str(path)) is None


FOLDER = Path(__file__).resolve().parents[3] / "configs" / "transfer"


def config(name: str) -> CfgNode:
    return read_config(str(FOLDER / f"{name}.yaml"), [])


def test_fewer_gpus_scale_everything() -> None:
    cfg = effective_config(config("voc_faster_rcnn_r50_c4_24k"), 2)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (4, 0.005, 96_000)
    assert (list(solver.STEPS), solver.WARMUP_ITERS) == ([72_000, 88_000], 400)
    assert effective_config(cfg, 2).SOLVER.MAX_ITER == 96_000
    cfg.SOLVER.IMS_PER_BATCH = 5
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 5, wanted a multiple of 2"):
        effective_config(cfg, 2)


def test_the_memory_rule_by_hand() -> None:
    cfg = config("coco_faster_rcnn_r50_fpn_1x")
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    model.roi_heads = nn.Module()
    cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.MIN_SIZE_TRAIN = 6, [3_200]
    cfg.INPUT.MAX_SIZE_TRAIN = 4_000
    line = memory_estimate(cfg, model, torch.optim.SGD(model.parameters()), 2)
    # 3 images of 3200 x 4000, 4 channels of 4 bytes, after the convolution and after the norm
    assert "1.2 GB a process" in line and 3 * 3_200 * 4_000 * 4 * 4 * 2 == 1_228_800_000


def test_a_pointer_to_a_lost_checkpoint_goes_back_to_one_that_is_kept(tmp_path: Path) -> None:
    repair_last_checkpoint(tmp_path)
    pointer = tmp_path / "last_checkpoint"
    assert not pointer.exists()
    (tmp_path / "model_0000049.pth").touch()
    (tmp_path / "model_0000099.pth").touch()
    pointer.write_text("model_0000049.pth", encoding="utf-8")
    repair_last_checkpoint(tmp_path)
    assert pointer.read_text(encoding="utf-8") == "model_0000049.pth"
    pointer.write_text("model_final.pth", encoding="utf-8")
    repair_last_checkpoint(tmp_path)
    assert pointer.read_text(encoding="utf-8") == "model_0000099.pth"
    for path in tmp_path.glob("model_*.pth"):
        path.unlink()
    repair_last_checkpoint(tmp_path)
    assert not pointer.exists()
