"""The global batch of several processes; everything works without a process group too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_distributed() -> bool:
    """Return whether a process group of more than one process is running."""
    return world_size() > 1


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """Parts of all ranks along `dim`; the backward keeps this rank's part, times the world size."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.size = dim, part.shape[dim]
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(world_size())]
        dist.all_gather(parts, part)
        return torch.cat(parts, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = grad.narrow(ctx.dim, rank() * ctx.size, ctx.size)
        return own * world_size(), None


def gather_with_gradient(part: Tensor, dim: int = 0) -> Tensor:
    """Return the parts of all ranks, which have equal shapes, joined along `dim` in rank order.

    Made for a loss that every rank computes on the whole and that has the same value on all of
    them. The gradient of this rank's part is the loss's gradient with respect to it, times the
    world size: DistributedDataParallel's mean over ranks then gives parameters the sum over all
    images, which is what one process holding the whole batch gets. No communication in the
    backward. Without a process group this is the identity.
    """
    return _Gather.apply(part, dim) if is_distributed() else part


def broadcast_from_first(tensor: Tensor, device: torch.device) -> Tensor:
    """Return rank 0's `tensor` on `device`, the same on every rank."""
    tensor = tensor.to(device)
    if is_distributed():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor
