"""INTL: iterative whitening, which leaves a trace, and a loss on it (arXiv 2305.16789).

Legend: V views, N global batch, D embedding dimension, T steps of IterNorm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.config.methods import INTLConfig
from pretrain.losses.base import Loss, checked_views, pairwise_mse, refuse
from pretrain.runtime.distributed import all_gather_with_grad
from pretrain.whitening.functional import ChannelGroups, full_precision, whiten_grouped
from pretrain.whitening.inverse_sqrt import WhiteningSettings


class INTLLoss(Loss):
    """IterNorm with trace loss (Weng et al., arXiv 2305.16789), as its published code has it.

    Each view is whitened as a whole by T steps of IterNorm: over channels, the N x N covariance of
    the images, of which the channels are the observations. T steps lift small eigenvalues part of
    the way alone; what they lack the trace loss asks for, the sum over the images of
    (variance - 1)^2. With whitened views Z_v and their trace losses L_v the loss is

        the mean over v > 0 of 2 - 2 cos(Z_v, Z_0) + w (L_v + L_0),    w = 0.01 (log2 N - 3),

    where the cosine is that of an image's two embeddings, in the mean over images. Over the batch
    channels and images change places, and w has D for N. It is never below 0.

    The embedding of a momentum branch is the `target`: Z_0, whose trace loss is left out. The
    embeddings are then those of the other views.
    """

    config: INTLConfig

    def forward(self, embeddings: Tensor, *, target: Tensor | None = None, **_: Any) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D], this rank's part of the global batch.

        `target` [1, N, D] is the first view; without it the first embedding is.

        Raises:
            ValueError: if the sizes cannot work.
        """
        if target is not None:
            embeddings = torch.cat([target.detach().to(embeddings.dtype), embeddings])
        x = checked_views(embeddings)
        with full_precision(x.device):
            x = all_gather_with_grad(x, 1)
            N, D = x.shape[1:]
            refuse(self.config.check(N, D))
            white = self._whiten(x)
            over_images = self.config.over == "batch"
            num_observations = N if over_images else D
            variances = white.square().sum(1 if over_images else 2) / (num_observations - 1)
            traces = (variances - 1.0).square().sum(1)
            trace = traces[1:].mean() + (traces[0] if target is None else 0.0)
            pairs = (torch.stack([white[0], other]) for other in white[1:])
            distances = torch.stack([pairwise_mse(pair, normalize=True) for pair in pairs])
            return distances.mean() + self.config.weight_of_trace(N, D) * trace

    @torch.no_grad()
    def whitened(self, embedding: Tensor) -> Tensor:
        """Return `embedding` [N, D] of one view as the loss whitens it, of the global batch.

        Every rank has to call this.
        """
        x = embedding if embedding.dtype == torch.float64 else embedding.float()
        with full_precision(x.device):
            return self._whiten(all_gather_with_grad(x, 0)[None])[0]

    def _whiten(self, x: Tensor) -> Tensor:
        """Return views `x` [V, N, D], each whitened as a whole."""
        settings = WhiteningSettings("newton", newton_iterations=self.config.newton_iterations)
        return whiten_grouped(x, ChannelGroups(self.config.over, 1), settings)[0]
