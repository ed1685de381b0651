"""Distance between views, plain and whitened, with a derivative worked out by hand.

Legend: V views, N batch, D embedding dimension, n sub-batch, S = N / n sub-batches, T iterations,
G groups, M = V T S whitenings.

All pairs come from one sum: with a_v the (normalised) views of an image and m = sum_v a_v,
sum_{v<u} |a_v - a_u|² = V sum_v |a_v - m / V|², which does not cancel where views are close. For
a_v = y_v / |y_v| its derivative with respect to y_v is -2 (m - (a_v . m) a_v) / |y_v|, so that a
backward pass needs m and one number a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.cpu import in_parts, keep_freed_memory, num_parts, on_one_core
from pretrain.saved import save_for_backward, saved
from pretrain.whitening import (
    Arrangement,
    Whitened,
    Whitening,
    full_precision,
    inverse_permutation,
)

_SHORTEST = 1e-12  # a shorter vector has no direction: it normalises to zero, with derivative zero


@dataclass(frozen=True)
class PairSum:
    """Sum over pairs of views of squared distances, and its slope p m + q y.

    `total` is m [..., D]; the slope with respect to view y_v is `along_total` p times m plus
    `along_view` q times y_v, where p and q are numbers or [V, ..., 1].
    """

    value: Tensor
    total: Tensor
    along_total: Tensor
    along_view: Tensor


def pair_sum(views: Tensor, *, normalize: bool, dim: int = -1) -> PairSum:
    """Return the sum over pairs of V of the squared distances of `views` [V, ...].

    `dim` is that of the D embedding dimensions.
    """
    V = views.shape[0]
    if not normalize:
        total = views.sum(0)
        value = V * (views - total / V).square_().sum()
        return PairSum(value, total, views.new_tensor(-2.0), views.new_tensor(2.0 * V))
    norm = views.square().sum(dim, keepdim=True).sqrt_()
    inverse = torch.where(norm <= _SHORTEST, 0.0, 1.0 / norm)
    unit = views * inverse
    total = unit.sum(0)
    along = (unit * total).sum(dim, keepdim=True)
    value = V * unit.sub_(total / V).square_().sum()
    return PairSum(value, total, -2.0 * inverse, 2.0 * inverse.square() * along)


def mean_over_pairs(num_views: int, num_compared: float) -> float:
    """Return the factor that makes a sum over pairs and numbers or samples compared a mean."""
    return 2.0 / (num_views * (num_views - 1) * num_compared)


class _PairDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, views: Tensor, normalize: bool) -> Tensor:
        pairs = pair_sum(views, normalize=normalize)
        num_compared = pairs.total.numel() / (views.shape[-1] if normalize else 1)
        ctx.factor = mean_over_pairs(len(views), num_compared)
        ctx.save_for_backward(views, pairs.total, pairs.along_total, pairs.along_view)
        return pairs.value * ctx.factor  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        views, total, along_total, along_view = ctx.saved_tensors
        grad = grad * ctx.factor
        return (along_total * grad) * total + (along_view * grad) * views, None


def pair_distance(views: Tensor, *, normalize: bool) -> Tensor:
    """Return the mean squared distance over all pairs of V `views` [V, ..., D].

    With `normalize` |a - b|² of L2-normalised vectors, in [0, 4]; else divided by D too.
    """
    return _PairDistance.apply(views, normalize)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Plan:
    """One evaluation: images `rows` [T, S, n], and how each of M = V T S members is whitened."""

    rows: Tensor
    arrangement: Arrangement
    whitening: Whitening
    normalize: bool


class _WhitenedPairDistance(torch.autograd.Function):
    """`pair_distance` of whitened sub-batches of x [V, N, D], and the number of ridges.

    Members are whitened in parts, one a core; between the parts views are compared. Channels
    stand by rows throughout, [M, D, n], so that groups and orders of channels are whole rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        V, N, D = x.shape
        n, flat = plan.rows.shape[-1], x.reshape(-1, D)
        start = N * torch.arange(V, device=x.device)[:, None, None]
        rows = (plan.rows.view(-1, n) + start).view(-1, n)
        white = x.new_empty(len(rows), D, n)

        def whiten_part(rows: Tensor, arrangement: Arrangement, white: Tensor) -> Whitened:
            samples = flat.index_select(0, rows.flatten()).view(-1, n, D)
            part, channels = plan.whitening.forward(samples, arrangement)
            white.copy_(channels)
            return part

        def compare() -> tuple[PairSum, Tensor]:
            pairs = pair_sum(white.view(V, -1, D, n), normalize=plan.normalize, dim=-2)
            counts = [part.root.num_regularized for part in whitened]
            return pairs, torch.stack(counts).sum()

        parts = num_parts(rows)
        whitened = in_parts(whiten_part, parts, rows, plan.arrangement.cut(parts), white)
        pairs, num_regularized = on_one_core(compare, parts)
        save_for_backward(ctx, [plan, pairs, whitened])
        ctx.shape = x.shape
        num_compared = pairs.total.numel() / (D if plan.normalize else 1)
        ctx.factor = mean_over_pairs(V, num_compared)
        ctx.mark_non_differentiable(num_regularized)
        return pairs.value * ctx.factor, num_regularized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        plan, pairs, whitened = saved(ctx)
        V, N, D = ctx.shape
        S, n = len(pairs.total), plan.rows.shape[-1]
        grad = grad * ctx.factor
        along_total = (pairs.along_total * grad).expand(V, S, 1, n).reshape(-1, 1, n)
        along_view = (pairs.along_view * grad).expand(V, S, 1, n).reshape(-1, 1, n)
        images = torch.arange(S, device=grad.device).repeat(V)
        slopes = pairs.total.new_empty(V * S, n, D)

        def pull_back_part(
            images: Tensor,
            along_total: Tensor,
            along_view: Tensor,
            arrangement: Arrangement,
            part: Whitened,
            slopes: Tensor,
        ) -> None:
            slope = arrangement.deal(pairs.total, images).mul_(along_total)
            slope.addcmul_(arrangement.from_variables(part.output), along_view)
            slopes.copy_(plan.whitening.backward(slope, arrangement, part))

        def unshuffle() -> Tensor:
            back = inverse_permutation(plan.rows.reshape(-1, N))
            back = back + N * torch.arange(len(back), device=back.device)[:, None]
            slope = slopes.view(V, -1, D).index_select(1, back.flatten())
            return slope.view(V, -1, N, D).sum(1) if len(back) > 1 else slope  # type: ignore[no-any-return]

        parts = len(whitened)
        with full_precision(grad.device):
            arrangements = plan.arrangement.cut(parts)
            in_parts(
                pull_back_part,
                parts,
                *(images, along_total, along_view, arrangements, whitened, slopes),
            )
            return on_one_core(unshuffle, parts), None


def whitened_pair_distance(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the `pair_distance` of the whitened views of `x` [V, N, D], and how many ridges.

    Equal to shuffling, whitening by `pretrain.whitening.whiten` and comparing, in one pass.
    """
    if x.device.type == "cpu":
        keep_freed_memory()
    return _WhitenedPairDistance.apply(x, plan)  # type: ignore[no-any-return]
