"""The precision of a detector: what float32 means on a GPU, and mixed precision in training."""

from __future__ import annotations

import os
from typing import Any

import torch
from detectron2.config import CfgNode

from transfer.config.finetune import FLOAT32

FIRST_WITH_TF32 = (8, 0)  # compute capability: Ampere


def set_tf32(allowed: bool) -> None:
    """Let convolutions and matrix products of float32 on a GPU be in TF32, or none of them.

    torch by itself takes TF32 for convolutions alone. A CPU computes as before.
    """
    backends: Any = torch.backends
    backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = allowed
    if hasattr(backends.cudnn, "conv"):  # torch 2.9: each has a setting that goes first
        for each in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul):
            each.fp32_precision = "tf32" if allowed else "ieee"


def precision_faults(cfg: CfgNode, *, trains: bool = True) -> list[str]:
    """Return why this machine cannot compute in the precision that the config asks for, or []."""
    asked, faults = cfg.MODEL.PRECISION == "tf32", []
    if cfg.MODEL.DEVICE == "cpu":
        if trains and cfg.SOLVER.AMP.ENABLED:
            faults.append(
                "SOLVER.AMP.ENABLED is True, but mixed precision needs a GPU and this runs on the "
                "CPU; set it to False (results then are others), or train on a GPU"
            )
        return faults + ([f"{FLOAT32} tf32 needs a GPU; use float32 here"] if asked else [])
    if cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available():
        override = os.environ.get("NVIDIA_TF32_OVERRIDE")
        if asked and torch.cuda.get_device_capability() < FIRST_WITH_TF32:
            name = torch.cuda.get_device_name()
            faults.append(f"{FLOAT32} tf32: {name} has none (GPUs have it from Ampere on)")
        elif override not in (None, str(int(asked))):
            says = f"{FLOAT32} {cfg.MODEL.PRECISION}"
            faults.append(f"NVIDIA_TF32_OVERRIDE is {override}, which overrides {says}; unset it")
    return faults


def precision_of(cfg: CfgNode) -> str:
    """Return in which types a run computes, for its provenance."""
    plain: str = cfg.MODEL.PRECISION
    if not cfg.SOLVER.AMP.ENABLED:
        return plain
    return f"{cfg.SOLVER.AMP.PRECISION} in training, {plain} in evaluation"
