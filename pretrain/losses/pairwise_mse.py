"""Distance between views, with a derivative worked out by hand.

Legend: V views, D embedding dimension.

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


def distance_and_slope(
    views: Tensor, factor: float, *, normalize: bool, dim: int = -1
) -> tuple[Tensor, Tensor]:
    """Return `factor` times the sum over pairs of squared distances of `views` [V, ...], and slope.

    The slope is the derivative with respect to the views, which stay as they are. `dim` is that of
    the D embedding dimensions.
    """
    V = views.shape[0]
    if normalize:
        norm = views.square().sum(dim, keepdim=True).sqrt_()
        inverse = torch.where(norm <= _SHORTEST, 0.0, 1.0 / norm)
        views = views * inverse
    apart = views - views.mean(0)
    value = V * factor * apart.square().sum()
    if normalize:
        views *= (views * apart).sum(dim, keepdim=True)
        apart.sub_(views).mul_(inverse.mul_(2.0 * V * factor))
    else:
        apart *= 2.0 * V * factor
    return value, apart


def pair_factor(num_views: int, num_images: int, dim: int, *, normalize: bool) -> float:
    """Return what makes the sum over pairs and images a mean (over D too if not normalised)."""
    num_compared = num_images if normalize else num_images * dim
    return 2.0 / (num_views * (num_views - 1) * num_compared)


class _PairDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, views: Tensor, normalize: bool) -> Tensor:
        V, D = views.shape[0], views.shape[-1]
        factor = pair_factor(V, views[0].numel() // D, D, normalize=normalize)
        value, slope = distance_and_slope(views, factor, normalize=normalize)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad, None


def pair_distance(views: Tensor, *, normalize: bool) -> Tensor:
    """Return the mean squared distance over all pairs of V `views` [V, ..., D].

    With `normalize` |a - b|² of L2-normalised vectors, in [0, 4]; else divided by D too.
    """
    return _PairDistance.apply(views, normalize)  # type: ignore[no-any-return]
