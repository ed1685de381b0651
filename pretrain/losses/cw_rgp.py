"""CW-RGP: channel whitening with random group partition (arXiv 2210.03586).

Legend: V views, N batch, D embedding dimension, n sub-batch, T iterations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.config.loss import loss_config
from pretrain.losses.base import (
    WhiteningLoss,
    checked_views,
    covariance_penalty,
    pairwise_mse,
    refuse,
)
from pretrain.runtime.distributed import all_gather_with_grad
from pretrain.whitening.functional import full_precision


class CWRGPLoss(WhiteningLoss):
    """CW-RGP (Weng et al., arXiv 2210.03586, section 4.2): channel whitening, random partition.

    Method `newton` takes IterNorm's 5 steps; `build_loss` takes another `newton_iterations`.
    In float32 the rule of `WMSELoss` holds with channels per group for samples and the sub-batch
    for the dimension.

    Args:
        sub_batch: images n that are whitened together, at least 2; divides this process's batch.
            D / `groups` channels should be well more: from fewer, and in one group from as many,
            every covariance is singular. In several groups as many give one of full rank, but so
            badly conditioned that whitening scales up noise, with or without a ridge.
        groups: groups of channels, whitened apart and drawn anew for every round, sub-batch and
            view; divides D.
        iterations: shuffles T of the batch per step, at least 1.
        normalize: whether whitened vectors are L2-normalised before the distance.
        method: inverse square root, one of cholesky, zca, pca, newton.
        eps: shrinkage of the covariance towards I, in [0, 1].
        covariance_weight: weight of the squared off-diagonal covariances between images, >= 0.

    Raises:
        ValueError: naming each argument that is out of range.

    Example:
        >>> import torch
        >>> loss = CWRGPLoss(sub_batch=16, groups=2)
        >>> embeddings = torch.randn(2, 32, 64, requires_grad=True)  # [V views, N batch, D]
        >>> value = loss(embeddings, generator=torch.Generator().manual_seed(0))  # in [0, 4]
        >>> value.backward()
        >>> embeddings.grad.shape
        torch.Size([2, 32, 64])
        >>> loss.regularized_count
        0
    """

    def __init__(  # noqa: PLR0913 - the settings of one published loss
        self,
        sub_batch: int,
        groups: int,
        *,
        iterations: int = 1,
        normalize: bool = True,
        method: str = "zca",
        eps: float = 0.0,
        covariance_weight: float = 0.0,
    ) -> None:
        super().__init__(
            loss_config(
                name="cw-rgp",
                sub_batch=sub_batch,
                groups=groups,
                iterations=iterations,
                normalize=normalize,
                method=method,
                eps=eps,
                covariance_weight=covariance_weight,
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
        """Return the scalar loss of `embeddings` [V, N, D], of this rank's part alone.

        `batch_permutation` [T, N] and `channel_partition` [T, N / n, V, D] of this rank's part are
        drawn from `generator` unless given; an empty partition leaves channels in order.

        Raises:
            ValueError: if the sizes cannot work.
        """
        x = checked_views(embeddings)
        with full_precision(x.device):
            penalty = self._penalty(x) if self.covariance_weight else None
            white, dim = self.whiten_views(x, generator, batch_permutation, channel_partition)
            loss = pairwise_mse(white, normalize=self.config.normalize, dim=dim)
            return loss if penalty is None else loss + self.covariance_weight * penalty

    def _penalty(self, x: Tensor) -> Tensor:
        """Return the mean covariance penalty of parts of the batch, or that of the global batch."""
        size = self.config.covariance_batch
        if size is None:
            return covariance_penalty(all_gather_with_grad(x, 1))
        _, N, D = x.shape
        if N % size:
            refuse([f"batch of {N} images is not divisible by covariance_batch {size}"])
        return covariance_penalty(x.reshape(-1, size, D)) * (size / N)
