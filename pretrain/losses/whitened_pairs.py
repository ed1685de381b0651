"""Distance between whitened views: value and derivative in one pass.

Legend: V views, N batch, D embedding dimension, n sub-batch, S = N / n sub-batches, T iterations,
M = V T S members (whitenings of one sub-batch of one view).

The derivative is made in the forward pass, where all that it needs is at hand; the backward pass
only scales it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.losses.pairwise_mse import distance_and_slope, pair_factor
from pretrain.runtime.cpu import keep_freed_memory
from pretrain.whitening.channel_groups import Arrangement, inverse_permutation
from pretrain.whitening.functional import Whitening


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
    def forward(ctx: Any, x: Tensor, plan: Plan, with_slope: bool) -> tuple[Tensor, Tensor]:
        V, N, D = x.shape
        T, _, n = plan.rows.shape
        first_of_view = N * torch.arange(V, device=x.device)[:, None, None]
        rows = (plan.rows.view(-1, n) + first_of_view).view(-1)
        samples = x.reshape(-1, D).index_select(0, rows).view(-1, n, D)
        whitened, white = plan.whitening.forward(samples, plan.arrangement)
        value, slope = distance_and_slope(
            white.view(V, -1, *white.shape[1:]),
            pair_factor(V, T * N, D, normalize=plan.normalize),
            normalize=plan.normalize,
            dim=plan.arrangement.channel_dim,
        )
        if with_slope:
            slope = plan.whitening.backward(slope.view_as(white), plan.arrangement, whitened)
            ctx.save_for_backward(_unshuffled(slope.view(V, -1, D), plan.rows))
        ctx.mark_non_differentiable(whitened.root.num_regularized)
        return value, whitened.root.num_regularized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad, None, None


def _unshuffled(slope: Tensor, rows: Tensor) -> Tensor:
    """Return the `slope` [V, T N, D] of shuffled samples at their own [V, N, D], added over T."""
    V, _, D = slope.shape
    back = inverse_permutation(rows.flatten(1))
    T, N = back.shape
    back += N * torch.arange(T, device=back.device)[:, None]
    slope = slope.index_select(1, back.flatten())
    return slope.view(V, T, N, D).sum(1) if T > 1 else slope


def whitened_pair_distance(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the `pair_distance` of the whitened views of `x` [V, N, D], and how many ridges.

    Equal to shuffling, whitening by `whiten` and comparing, in one pass.
    """
    if x.device.type == "cpu":
        keep_freed_memory()
    with_slope = x.requires_grad and torch.is_grad_enabled()
    return _WhitenedPairDistance.apply(x, plan, with_slope)  # type: ignore[no-any-return]
