"""Mean squared distance over pairs of views, and the checks of views that every loss makes.

Legend: V views, N batch, D embedding dimension.

All pairs come from one sum: with a_v the (normalised) views of an image and d_v = a_v - m, m their
mean, sum_{v<u} |a_v - a_u|² = V sum_v |d_v|², which does not cancel where views are close. Its
derivative with respect to a_v is 2 V d_v; for a_v = y_v / |y_v| that with respect to y_v is
2 V (d_v - (a_v . d_v) a_v) / |y_v|.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SHORTEST = 1e-12  # a shorter vector has no direction: it normalises to zero, with derivative zero


class _PairwiseMSE(torch.autograd.Function):
    """`pairwise_mse`; its derivative is made in the forward pass, where all it needs is at hand."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, normalize: bool, dim: int) -> Tensor:
        V, D = views.shape[0], views.shape[dim]
        num_compared = views[0].numel() // (D if normalize else 1)
        factor = 2.0 / (V * (V - 1) * num_compared)
        if normalize:
            norm = views.square().sum(dim, keepdim=True).sqrt_()
            inverse = torch.where(norm <= _SHORTEST, 0.0, 1.0 / norm)
            views = views * inverse
        apart = views - views.mean(0)
        value = V * factor * apart.square().sum()
        if normalize:
            views *= (views * apart).sum(dim, keepdim=True)
            grad = apart.sub_(views).mul_(inverse.mul_(2.0 * V * factor))
        else:
            grad = apart.mul_(2.0 * V * factor)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_views,) = ctx.saved_tensors
        return grad_views * grad, None, None


def pairwise_mse(views: Tensor, *, normalize: bool, dim: int = -1) -> Tensor:
    """Return the mean squared distance over all pairs of V `views` [V, ...], D in `dim`.

    With `normalize` |a - b|² of L2-normalised vectors, in [0, 4]; else divided by D too.
    """
    return _PairwiseMSE.apply(views, normalize, dim)  # type: ignore[no-any-return]


def refuse(faults: list[str]) -> None:
    """Raise ValueError with all `faults`, if any."""
    if faults:
        raise ValueError("; ".join(faults))


def checked_views(embeddings: Tensor) -> Tensor:
    """Return `embeddings` [V, N, D] in the precision of the loss: float32, or float64 as they are.

    Raises:
        ValueError: if they have other dimensions or fewer than two views.
    """
    if embeddings.dim() != 3 or embeddings.shape[0] < 2:
        raise ValueError(
            f"embeddings want [V views, N batch, D] with at least 2 views, "
            f"got {list(embeddings.shape)}"
        )
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
