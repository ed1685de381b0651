"""W-MSE: sub-batches of every view are whitened over their samples (arXiv 2007.06346).

Legend: V views, N batch, D embedding dimension, n sub-batch, T iterations. The shuffles and the
distance are in `pretrain.losses.base`, the covariance in `pretrain.whitening.functional`, its
inverse square root and the gradient in `pretrain.whitening.inverse_sqrt`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.config.loss import loss_config
from pretrain.losses.base import WhiteningLoss, checked_views, pairwise_mse
from pretrain.runtime.distributed import all_gather_with_grad
from pretrain.whitening.functional import full_precision


class WMSELoss(WhiteningLoss):
    """W-MSE (Ermolov et al., arXiv 2007.06346, section 3): batch whitening, Cholesky by default.

    Method `newton` takes IterNorm's 5 steps; `build_loss` takes another `newton_iterations`.

    In float32 keep the sub-batch at an eighth or more above the whitened dimension, better twice
    it. With channels that are hardly correlated the gradient is off by about 1e-6 of its norm at
    twice, 5e-5 at nine eighths and 1e-3 to more than 1 at one or two samples above, where only
    float64 embeddings or `eps` > 0 help: such a covariance is badly conditioned, but too seldom
    singular to get a ridge. Strong correlation costs digits as well, here as in any float32 code.

    Args:
        sub_batch: images n that are whitened together, at least 2; divides the global batch N and
            exceeds D / `groups` unless `eps` > 0.
        iterations: shuffles T of the batch per step, at least 1.
        normalize: whether whitened vectors are L2-normalised before the distance.
        method: inverse square root, one of cholesky, zca, pca, newton.
        groups: groups of channels that are whitened apart; divides D. With 2 or more the channels
            of each group are drawn anew for every round, sub-batch and view.
        eps: shrinkage of the covariance towards I, in [0, 1].

    Raises:
        ValueError: naming each argument that is out of range.

    Example:
        >>> import torch
        >>> loss = WMSELoss(sub_batch=128)
        >>> embeddings = torch.randn(2, 256, 64, requires_grad=True)  # [V views, N batch, D]
        >>> value = loss(embeddings)  # in [0, 4]
        >>> value.backward()
        >>> embeddings.grad.shape
        torch.Size([2, 256, 64])
    """

    def __init__(
        self,
        sub_batch: int,
        *,
        iterations: int = 1,
        normalize: bool = True,
        method: str = "cholesky",
        groups: int = 1,
        eps: float = 0.0,
    ) -> None:
        super().__init__(
            loss_config(
                name="w-mse",
                sub_batch=sub_batch,
                iterations=iterations,
                normalize=normalize,
                method=method,
                groups=groups,
                eps=eps,
            )
        )

    def forward(
        self,
        embeddings: Tensor,
        *,
        generator: torch.Generator | None = None,
        batch_permutation: Tensor | None = None,
        channel_partition: Tensor | None = None,
    ) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D], this rank's part of the global batch.

        `batch_permutation` [T, N] and `channel_partition` [T, N / n, V, D] of the global batch are
        drawn from rank 0's `generator` unless given; an empty partition leaves channels in order.

        Raises:
            ValueError: if the sizes cannot work.
        """
        x = checked_views(embeddings)
        with full_precision(x.device):
            x = all_gather_with_grad(x, 1)  # a sub-batch takes images of all ranks
            white, dim = self.whiten_views(x, generator, batch_permutation, channel_partition)
            return pairwise_mse(white, normalize=self.config.normalize, dim=dim)
