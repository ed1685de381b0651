"""A rule of thumb for the GPU memory that a step takes, before the first one is run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

GB = 1e9
COPIES = {"SGD": 3, "AdamW": 4}  # of each parameter: weight, gradient, what the optimiser keeps
KEPT = (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)


def memory_estimate(cfg: CfgNode, model: nn.Module, optimizer: Any, world_size: int) -> str:
    """Return one line: parameters and their copies, and what the backward pass needs.

    The latter counts the outputs of all convolutions and norms of the backbone, and of a C4
    detector's res5 over its proposals, for one process's images at the largest training size. What
    RPN, other heads and the libraries take is not in it.
    """
    kind = next(name for name in COPIES if name in type(optimizer).__name__)
    weights = COPIES[kind] * 4 * sum(parameter.numel() for parameter in model.parameters())
    num_images = max(1, cfg.SOLVER.IMS_PER_BATCH // world_size)
    short = max(cfg.INPUT.MIN_SIZE_TRAIN)
    long = min(cfg.INPUT.MAX_SIZE_TRAIN, round(short * 4 / 3))
    size = [-(-side // 32) * 32 for side in (short, long)]
    activations = _output_bytes(model.get_submodule("backbone"), [num_images, 3, *size])
    res5 = getattr(model.roi_heads, "res5", None)
    if res5 is not None:
        channels = next(res5.parameters()).shape[1]
        side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        num_boxes = num_images * cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
        activations += _output_bytes(res5, [num_boxes, channels, side, side])
    if cfg.SOLVER.AMP.ENABLED:
        activations //= 2
    return (
        f"memory, a rule of thumb: {(weights + activations) / GB:.1f} GB a process, of which "
        f"{weights / GB:.1f} for weights, gradients and {kind}, {activations / GB:.1f} for "
        f"{num_images} images of {size[0]} x {size[1]} in the backbone; RPN, heads and CUDA "
        "come on top"
    )


def _output_bytes(module: nn.Module, shape: list[int]) -> int:
    """Return the bytes of all convolutions' and norms' outputs; nothing is computed."""
    ghost = copy.deepcopy(module).to("meta").eval()
    total = 0

    def count(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += 4 * output.numel()

    for part in ghost.modules():
        if isinstance(part, KEPT):
            part.register_forward_hook(count)
    with torch.no_grad():
        ghost(torch.empty(shape, device="meta"))
    return total
