"""The cosine between a predictor's output and a target of another view: SimSiam and BYOL.

Legend: V views, N batch, D embedding dimension. Nothing is drawn, and nothing gathered: images are
taken apart, so each rank returns the loss of its part, whose mean over ranks is that of the whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.config.methods import BYOLConfig, SimSiamConfig
from pretrain.losses.base import Loss, checked_views, normalized, refuse
from pretrain.runtime.distributed import world_size


class SimSiamLoss(Loss):
    """Minus the cosine of a view's prediction and another view's embedding, without its gradient.

    Equations 1 and 2 of Chen and He, arXiv 2011.10566: the mean over both directions, and with more
    than two views over all ordered pairs. Between -1 and 1.
    """

    config: SimSiamConfig

    def forward(self, embeddings: Tensor, *, predictions: Tensor, **_: Any) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D] and what is predicted from each."""
        x = checked_views(embeddings)
        refuse(self.config.check(x.shape[1] * world_size(), x.shape[2]))
        return -mean_cosine(predictions, x.detach())


class BYOLLoss(Loss):
    """The squared distance of a view's normalised prediction and another view's target.

    Equation 2 of Grill et al., arXiv 2006.07733, 2 - 2 cos, as the mean over both directions (the
    paper has their sum), and with more than two views over all ordered pairs. Between 0 and 4.
    """

    config: BYOLConfig

    def forward(
        self, embeddings: Tensor, *, predictions: Tensor, targets: Tensor, **_: Any
    ) -> Tensor:
        """Return the scalar loss of predictions from `embeddings` and `targets`, all [V, N, D]."""
        x = checked_views(embeddings)
        refuse(self.config.check(x.shape[1] * world_size(), x.shape[2]))
        return 2 - 2 * mean_cosine(predictions, checked_views(targets).detach())


def mean_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cosine of predictions and targets, both [V, N, D], of another view each.

    The mean over images and over the V (V - 1) ordered pairs of views. A vector of length zero has
    cosine 0, and no gradient.

    Raises:
        ValueError: if their shapes differ.
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            f"predictions have shape {list(predictions.shape)}, want {list(targets.shape)} as the "
            "targets"
        )
    with torch.autocast(targets.device.type, enabled=False):
        p, t = normalized(checked_views(predictions)), normalized(targets)
        V, N, _ = p.shape
        # by products of elements, which no precision of matrix products reaches
        cosines = [(p * t.roll(shift, 0)).sum() for shift in range(1, V)]
        return torch.stack(cosines).sum() / (V * (V - 1) * N)
