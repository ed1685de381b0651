"""The controls of the whitening losses: BatchNorm only, and nothing at all.

Legend: V views, N batch, D embedding dimension. Nothing is drawn.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pretrain.config.loss import LossConfig
from pretrain.losses.base import Loss, checked_views, pairwise_mse, refuse, standardized
from pretrain.runtime.distributed import all_gather_with_grad, world_size
from pretrain.whitening.functional import full_precision


class BatchNormLoss(Loss):
    """The control that only standardises each channel over the (global) batch of each view."""

    config: LossConfig

    def forward(self, embeddings: Tensor, **_: Any) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D]."""
        x = checked_views(embeddings)
        with full_precision(x.device):
            x = all_gather_with_grad(x, 1)
            refuse(self.config.check(x.shape[1], x.shape[2]))
            return pairwise_mse(standardized(x, self.config.eps), normalize=self.config.normalize)


class PlainLoss(Loss):
    """The control without whitening: views are compared as they are, and collapse."""

    config: LossConfig

    def forward(self, embeddings: Tensor, **_: Any) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D], of this rank's part only."""
        x = checked_views(embeddings)
        refuse(self.config.check(x.shape[1] * world_size(), x.shape[2]))
        with full_precision(x.device):
            return pairwise_mse(x, normalize=self.config.normalize)
