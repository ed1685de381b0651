"""The memory that a pretraining takes on its device, estimated without computing anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.methods import build_model
from pretrain.runtime.device import Views
from pretrain.training.precision import DTYPES

GB = 1e9
COPIES = {"adam": 4, "sgd": 3, "lars": 3}  # of what is trained: weight, gradient, state
KEPT = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)


def memory_estimate(config: PretrainConfig, num_processes: int) -> str:
    """Return one line: parameters and their copies, views, and what the backward pass needs.

    The last counts the outputs of all convolutions, linear layers and norms, for the images that
    are in memory at a time. What the loss, its indicators and the libraries take is not in it.
    """
    compute, sides = config.compute, config.view_sizes
    n = config.batch_size // num_processes
    with torch.device("meta"):
        model = build_model(config)
    trained = COPIES[config.optimizer.name]
    weights = sum(
        4 * parameter.numel() * (trained if parameter.requires_grad else 1)
        for parameter in model.parameters()
    )
    # of a step, the next, and the last, which is read late
    views = 3 * 4 * n * 3 * sum(side**2 for side in sides)
    part = -(-n // compute.accumulate)
    on_meta = tuple(torch.empty(part, 3, side, side, device="meta") for side in sides)
    activations = output_bytes(model, on_meta)
    if compute.precision in DTYPES:
        activations //= 2
    total = weights + views + activations
    shapes = ", ".join(f"{side} x {side}" for side in dict.fromkeys(sides))
    return (
        f"memory, a rule of thumb: {total / GB:.1f} GB a process, of which {weights / GB:.1f} for "
        f"weights, gradients and {config.optimizer.name}, {views / GB:.1f} for the views of three "
        f"steps, {activations / GB:.1f} for {len(sides)} views of {part} images of {shapes} in "
        "encoder and projector; the loss and CUDA come on top"
    )


def output_bytes(model: nn.Module, views: Views) -> int:
    """Return the float32 bytes of all outputs that a backward pass keeps; all is on `meta`."""
    total = 0

    def count(_: nn.Module, __: Any, output: Tensor) -> None:
        nonlocal total
        if output.requires_grad:  # a momentum branch keeps nothing
            total += 4 * output.numel()

    for each in model.modules():
        if isinstance(each, KEPT):
            each.register_forward_hook(count)
    model.eval()(views)
    return total
