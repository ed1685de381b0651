"""VICReg: views agree, channels vary and do not covary (arXiv 2105.04906).

Legend: V views, N batch, D embedding dimension.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pretrain.config.methods import VICRegConfig
from pretrain.losses.base import Loss, checked_views, covariance_penalty, pairwise_mse, refuse
from pretrain.runtime.distributed import all_gather_with_grad
from pretrain.whitening.functional import full_precision


class VICRegLoss(Loss):
    """VICReg (Bardes et al., arXiv 2105.04906, equations 1 to 6) over the global batch.

    Of a pair of views: the mean squared distance, the **mean** of both variance terms, as in the
    authors' code, and the **sum** of both covariance terms. Equation 6 and the code of CW-RGP sum
    the variance terms as well: `variance_weight` 50 here is their 25. With more than two views the
    mean over all pairs of them.

    Args:
        config: `invariance_weight`, `variance_weight` and `covariance_weight`, the paper's lambda,
            mu and nu; `eps`, added to variances.

    Raises:
        ValueError: when called, unless there are 2 views and 2 images or more.
    """

    config: VICRegConfig

    def forward(self, embeddings: Tensor, **_: Any) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D], this rank's part of the batch."""
        config, x = self.config, checked_views(embeddings)
        with full_precision(x.device):
            x = all_gather_with_grad(x, 1)  # variances are over the images of all ranks
            refuse(config.check(x.shape[1], x.shape[2]))
            invariance = pairwise_mse(x, normalize=False)  # equation 5
            variance = F.relu(1 - (x.var(1) + config.eps).sqrt()).mean()  # equations 1 and 2
            covariance = covariance_penalty(x.mT) * (2 / len(x))  # equations 3 and 4
            return (
                config.invariance_weight * invariance
                + config.variance_weight * variance
                + config.covariance_weight * covariance
            )
