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

from pretrain.cpu import keep_freed_memory
from pretrain.whitening import Arrangement, Whitening, full_precision, inverse_permutation

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


def pair_sum(views: Tensor, *, normalize: bool) -> PairSum:
    """Return the sum over pairs of V of the squared distances of `views` [V, ..., D]."""
    V = views.shape[0]
    if not normalize:
        total = views.sum(0)
        value = V * _sum_of_squares(views - total / V)
        return PairSum(value, total, views.new_tensor(-2.0), views.new_tensor(2.0 * V))
    norm = torch.linalg.vector_norm(views, dim=-1, keepdim=True)
    inverse = torch.where(norm <= _SHORTEST, 0.0, 1.0 / norm)
    unit = views * inverse
    total = unit.sum(0)
    along = torch.linalg.vecdot(unit, total).unsqueeze(-1)
    value = V * _sum_of_squares(unit.sub_(total / V))
    return PairSum(value, total, -2.0 * inverse, 2.0 * inverse.square() * along)


def _sum_of_squares(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norms.square_().sum()


def mean_over_pairs(shape: torch.Size, *, normalize: bool) -> float:
    """Return the factor that makes a sum over pairs a mean, for views of `shape` [V, ..., D].

    Over pairs and samples, and without `normalize` over dimensions too.
    """
    V, D = shape[0], shape[-1]
    num_compared = float(shape.numel()) / V / (D if normalize else 1)
    return 2.0 / (V * (V - 1) * num_compared)


class _PairDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, views: Tensor, normalize: bool) -> Tensor:
        pairs = pair_sum(views, normalize=normalize)
        factor = mean_over_pairs(views.shape, normalize=normalize)
        ctx.factor = factor
        ctx.save_for_backward(views, pairs.total, pairs.along_total, pairs.along_view)
        return pairs.value * factor

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
    """`pair_distance` of whitened sub-batches of x [V, N, D], and the number of ridges."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        V, _, D = x.shape
        arrangement, n = plan.arrangement, plan.rows.shape[-1]
        shuffled = x.index_select(1, plan.rows.flatten()).view(-1, n, D)
        variables = arrangement.to_variables(arrangement.centre_(shuffled))
        del shuffled
        factors, output = plan.whitening.factorise(variables)
        views = arrangement.from_variables(output).view(V, -1, n, D)
        pairs = pair_sum(views, normalize=plan.normalize)
        ctx.plan, ctx.factors, ctx.shape = plan, factors, x.shape
        ctx.factor = mean_over_pairs(views.shape, normalize=plan.normalize)
        kept = variables if factors.needs_variables else None
        ctx.save_for_backward(output, kept, pairs.total, pairs.along_total, pairs.along_view)
        num_regularized = factors.num_regularized()
        ctx.mark_non_differentiable(num_regularized)
        return pairs.value * ctx.factor, num_regularized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        output, variables, total, along_total, along_view = ctx.saved_tensors
        arrangement, rows, (V, N, D) = ctx.plan.arrangement, ctx.plan.rows, ctx.shape
        grad = grad * ctx.factor
        with full_precision(grad.device):
            slope = arrangement.to_variables(total.repeat(V, 1, 1))
            slope = slope.mul_(arrangement.per_sample(along_total * grad))
            slope = slope.addcmul_(output, arrangement.per_sample(along_view * grad))
            slope = ctx.factors.pull_back(slope, output, variables)
            slope = arrangement.centre_(arrangement.from_variables(slope)).view(V, -1, D)
            back = inverse_permutation(rows.reshape(-1, N))
            back = back + N * torch.arange(back.shape[0], device=back.device)[:, None]
            slope = slope.index_select(1, back.flatten())
            return slope.view(V, -1, N, D).sum(1) if back.shape[0] > 1 else slope, None


def whitened_pair_distance(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the `pair_distance` of the whitened views of `x` [V, N, D], and how many ridges.

    Equal to shuffling, whitening by `pretrain.whitening.whiten` and comparing, in one pass.
    """
    if x.device.type == "cpu":
        keep_freed_memory()
    return _WhitenedPairDistance.apply(x, plan)  # type: ignore[no-any-return]
