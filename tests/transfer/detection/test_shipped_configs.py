"""Every shipped detection config against the published recipe, and every model built.

Read in public files: facebookresearch/moco, detection/ (commit 7397dfe), for C4, naiveSyncBN, VOC
24k, COCO C4 2x, RGB input with ImageNet's mean and std; detectron2's Base-RCNN-FPN and its 1x and
3x schedules. No file is published for the rest: 9k on VOC 2007, BatchNorm in the FPN, and 1x and 2x
with R50-FPN are only named in papers (MoCo, arXiv 1911.05722), and where the rate drops in 9k, the
2x of FPN and the schedules on parts of COCO are this project's choice, by analogy.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import build_model
from torch import nn

from transfer.config.data import KNOWN_DATASETS
from transfer.config.finetune import FinetuneConfig
from transfer.config.recipe import config_faults, value_at
from transfer.detection.cli import read_config
from transfer.detection.run import memory_estimate

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "transfer"
FIELD = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("digits"))
TASKS = [name for name in FIELD if not name.startswith("base")]
RECIPE = {
    "INPUT.FORMAT": "RGB",
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.RANDOM_FLIP": "horizontal",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.NORM": "naiveSyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.WEIGHTS": "",
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.REFERENCE_WORLD_SIZE": 8,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
}
C4 = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
}
FPN = {
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.FPN.NORM": "naiveSyncBN",
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
}
MASK_FPN = {"MODEL.ROI_MASK_HEAD.NUM_CONV": 4, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14}
VOC = {
    "DATASETS.TEST": ["voc_2007_test"],
    "INPUT.MIN_SIZE_TRAIN": [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
    "MODEL.MASK_ON": False,
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "SOLVER.WARMUP_ITERS": 100,
}
COCO = {
    "DATASETS.TEST": ["coco_2017_val"],
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
}
VOC0712 = ["voc_2007_trainval", "voc_2012_trainval"]
# name: training sets, iterations, drops, warm-up
SCHEDULES: dict[str, tuple[list[str], int, list[int], int]] = {
    "voc_": (VOC0712, 24_000, [18_000, 22_000], 100),
    "voc07_": (["voc_2007_trainval"], 9_000, [6_750, 8_250], 100),
    "coco10pct_": (["coco_2017_train_10pct_seed0"], 18_000, [12_000, 16_000], 100),
    "coco1pct_": (["coco_2017_train_1pct_seed0"], 1_800, [1_200, 1_600], 100),
    "1x": (["coco_2017_train"], 90_000, [60_000, 80_000], 1_000),
    "2x": (["coco_2017_train"], 180_000, [120_000, 160_000], 1_000),
    "3x": (["coco_2017_train"], 270_000, [210_000, 250_000], 1_000),
}


def config(name: str) -> CfgNode:
    return read_config(str(FOLDER / f"{name}.yaml"), [])


def expected(name: str) -> dict[str, Any]:
    """Return every published value of a config, told from its name alone."""
    key = next(key for key in SCHEDULES if name.startswith(key) or name.endswith(key))
    sets, iterations, drops, warm_up = SCHEDULES[key]
    depth = int(next(part[1:] for part in name.split("_") if part[0] == "r" and part[1:].isdigit()))
    wanted = RECIPE | (C4 if "_c4" in name else FPN) | (VOC if name.startswith("voc") else COCO)
    wanted |= {"MODEL.MASK_ON": "_mask_" in name}
    if "_mask_" in name and "_fpn" in name:
        wanted |= MASK_FPN
    return wanted | {
        "DATASETS.TRAIN": sets,
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": drops,
        "SOLVER.WARMUP_ITERS": warm_up,
    }


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", TASKS)
def test_every_value_is_the_published_one(name: str) -> None:
    cfg = config(name)
    wanted = expected(name)
    assert {key: plain(value_at(cfg, key)) for key in wanted} == wanted
    assert all(data in KNOWN_DATASETS for data in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def test_every_task_of_the_benchmark_has_a_config() -> None:
    needed = {"voc_faster_rcnn_r50_c4_24k", "voc07_faster_rcnn_r50_c4_9k"}
    needed |= {f"coco_mask_rcnn_r50_c4_{length}" for length in ("1x", "2x")}
    for kind in ("mask", "faster"):
        needed |= {f"coco_{kind}_rcnn_r50_fpn_{length}" for length in ("1x", "2x", "3x")}
    needed |= {f"coco{percent}pct_mask_rcnn_r50_fpn" for percent in (1, 10)}
    needed |= {f"coco_mask_rcnn_r{depth}_fpn_1x" for depth in (18, 34, 101)}
    needed |= {"voc_faster_rcnn_r101_c4_24k", "coco_mask_rcnn_r101_c4_2x"}
    assert needed <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_every_model_is_built_and_its_memory_estimated(name: str) -> None:
    cfg = config(name)
    cfg.MODEL.DEVICE = "meta"  # no weight is asked for its value
    with torch.device("meta"):
        model = build_model(cfg)
    assert all(parameter.requires_grad for parameter in model.parameters())
    backbone = model.backbone if "_c4" in name else model.backbone.bottom_up
    norms = [part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) > 15 and {type(norm) for norm in norms} == {NaiveSyncBatchNorm}
    if "_c4" in name:
        assert type(model.roi_heads.res5.norm) is NaiveSyncBatchNorm
        assert model.roi_heads.res5.norm.num_features == 2048
    else:
        assert type(model.backbone.fpn_output2.norm) is NaiveSyncBatchNorm
    optimizer = torch.optim.SGD(model.parameters())
    line = memory_estimate(cfg, model, optimizer, 8)
    assert "2 images of 800 x 1088" in line and "weights, gradients and SGD" in line


@pytest.mark.parametrize("name", TASKS)
def test_the_pipeline_takes_every_config(name: str) -> None:
    content = CfgNode.load_yaml_with_base(str(FOLDER / f"{name}.yaml"))
    datasets = {key: KNOWN_DATASETS[key] for key in (*expected(name)["DATASETS.TRAIN"],)}
    assert config_faults(FinetuneConfig(detectron2=content, datasets=datasets)) == []
