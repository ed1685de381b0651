"""Whether a detector and its training can be built from a config, asked before hours are spent."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model

from transfer.detection.task_values import value_at
from transfer.detection.trainer import TRAINERS

# Numbers that detectron2 would take and do nothing sensible with: key -> smallest, largest.
LIMITS: dict[str, tuple[float, float]] = {
    "SOLVER.BASE_LR": (1e-12, 1e6),
    "SOLVER.MAX_ITER": (1, 1e9),
    "SOLVER.IMS_PER_BATCH": (1, 1e6),
    "SOLVER.CHECKPOINT_PERIOD": (1, 1e9),
    "SOLVER.WARMUP_ITERS": (0, 1e9),
    "SOLVER.WARMUP_FACTOR": (0, 1),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.GAMMA": (0, 1),
    "SOLVER.WEIGHT_DECAY": (0, 1e6),
    "SOLVER.WEIGHT_DECAY_NORM": (0, 1e6),
    "MODEL.ROI_HEADS.NUM_CLASSES": (1, 1e5),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": (1, 1e6),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": (0, 1),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": (0, 1),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": (0, 1),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": (1, 1e6),
    "MODEL.RPN.NMS_THRESH": (0, 1),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": (1, 1e6),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": (1, 1e6),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": (1, 1e6),
    "MODEL.RPN.POST_NMS_TOPK_TEST": (1, 1e6),
    "INPUT.MIN_SIZE_TEST": (0, 1e5),
    "INPUT.MAX_SIZE_TRAIN": (1, 1e5),
    "INPUT.MAX_SIZE_TEST": (1, 1e5),
    "TEST.DETECTIONS_PER_IMAGE": (1, 1e5),
    "DATALOADER.NUM_WORKERS": (0, 1e4),
}


def build_faults(cfg: CfgNode, optimizer: str = "sgd") -> list[str]:
    """Return one line for each number out of its range, or one for what cannot be built.

    The detector is built without memory for its weights.
    """
    faults = [
        f"{key} is {value_at(cfg, key)}, wanted {low:g} to {high:g}"
        for key, (low, high) in LIMITS.items()
        if not low <= value_at(cfg, key) <= high
    ]
    steps, sizes = list(cfg.SOLVER.STEPS), list(cfg.INPUT.MIN_SIZE_TRAIN)
    if steps != sorted(steps) or any(step < 0 for step in steps):
        faults.append(f"SOLVER.STEPS is {steps}, wanted iterations in rising order")
    if not sizes or any(not 0 < size <= 1e5 for size in sizes):
        faults.append(f"INPUT.MIN_SIZE_TRAIN is {sizes}, wanted sizes from 1 to 1e+05 pixels")
    return faults or [fault for fault in [_fault(cfg, optimizer)] if fault]


def _fault(cfg: CfgNode, optimizer: str) -> str | None:
    bare: Any = cfg.clone()
    bare.defrost()
    bare.MODEL.DEVICE = "meta"
    trainer = TRAINERS[optimizer]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DatasetMapper(bare, is_train=True)
            with torch.device("meta"):
                model = build_model(bare)
                trainer.build_lr_scheduler(bare, trainer.build_optimizer(bare, model))
    except Exception as error:  # noqa: BLE001  (detectron2 raises many types for a wrong value)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return f"no detector can be built from this config: {reason}"
    return None
