"""Barlow Twins: channels of two views correlate with themselves alone (arXiv 2103.03230).

Legend: V views, N batch, D embedding dimension, C cross-correlation [D, D].
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.config.methods import BarlowTwinsConfig
from pretrain.losses.base import Loss, checked_views, refuse, standardized
from pretrain.runtime.distributed import all_gather_with_grad
from pretrain.whitening.functional import full_precision


class BarlowTwinsLoss(Loss):
    """Barlow Twins (Zbontar et al., arXiv 2103.03230, equations 1 and 2) over the global batch.

    With more than two views the mean over all pairs of them. Each view is standardised apart, as
    by BatchNorm without its affine part, which is why the projector needs none at its end.

    Args:
        config: `redundancy_weight`, the paper's lambda; `scale`, a factor on the whole; `eps`,
            added to variances.

    Raises:
        ValueError: when called, unless there are 2 views and 2 images or more.
    """

    config: BarlowTwinsConfig

    def forward(self, embeddings: Tensor, **_: Any) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D], this rank's part of the batch."""
        x = checked_views(embeddings)
        with full_precision(x.device):
            x = all_gather_with_grad(x, 1)  # correlations are over the images of all ranks
            refuse(self.config.check(x.shape[1], x.shape[2]))
            z = standardized(x, self.config.eps)
            loss: Tensor = _Redundancy.apply(z, self.config.redundancy_weight)
            return self.config.scale * loss


class _Redundancy(torch.autograd.Function):
    """Equation 1 of standardised views [V, N, D], mean over pairs.

    Its derivative is made in the forward pass, so that no C outlives its pair: of D 8192 it has
    256 MB in float32.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: float) -> Tensor:
        V, N, _ = z.shape
        value, grad = z.new_zeros(()), torch.zeros_like(z)
        for a, b in combinations(range(V), 2):
            C = (z[a].mT @ z[b]).div_(N)
            diagonal = C.diagonal()
            apart = diagonal - 1
            diagonal.zero_()
            value += apart.square().sum() + weight * C.square().sum()
            C *= weight
            diagonal.copy_(apart)  # C is half the derivative of the pair with respect to C
            grad[a].addmm_(z[b], C.mT)
            grad[b].addmm_(z[a], C)
        factor = 2.0 / (V * (V - 1))
        ctx.save_for_backward(grad.mul_(2.0 * factor / N))
        return value * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (grad_z,) = ctx.saved_tensors
        return grad_z * grad, None
