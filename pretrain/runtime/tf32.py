"""TF32 on a GPU: float32 numbers of which a product reads 10 bits of the fraction, not 23."""

from __future__ import annotations

import os
from typing import Any

import torch

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


def tf32_faults(key: str, precision: str, device: torch.device) -> list[str]:
    """Return why `device` would compute in TF32 unasked, or cannot; `key` is what asks."""
    asked = precision == "tf32"
    if device.type != "cuda":
        return [f"{key} tf32 needs a GPU; use float32 here"] if asked else []
    if asked and torch.cuda.get_device_capability(device) < FIRST_WITH_TF32:
        name = torch.cuda.get_device_name(device)
        return [f"{key} tf32: {name} has none (GPUs have it from Ampere on); use float32"]
    override = os.environ.get("NVIDIA_TF32_OVERRIDE")
    if override is None or override == str(int(asked)):
        return []
    return [f"NVIDIA_TF32_OVERRIDE is {override}, which overrides {key} {precision}; unset it"]
