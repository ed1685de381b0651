"""InfoNCE, which tells an image's other view from those of other images, and SimCLR's loss of it.

Legend: V views, N batch, D embedding dimension, K negatives. A logit is a cosine divided by the
temperature.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config.methods import SimCLRConfig
from pretrain.losses.base import Loss, checked_views, differentiated, normalized, refuse
from pretrain.runtime.distributed import all_gather_with_grad
from pretrain.whitening.functional import full_precision


class SimCLRLoss(Loss):
    """NT-Xent (Chen et al., arXiv 2002.05709, equation 1) over the global batch.

    View a of an image is told to find view b of it among the other images' views a and b, 2 N - 2
    negatives; the loss is the mean over images, pairs of views and both directions. With more than
    two views it so is the mean over pairs of what two views give, as the code of W-MSE has it.

    Every rank computes the loss of the whole batch, with (V N)² logits.

    Args:
        config: `temperature`, by which cosines are divided.

    Raises:
        ValueError: when called, unless there are 2 views and 2 images or more.
    """

    config: SimCLRConfig

    def forward(self, embeddings: Tensor, **_: Any) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D], this rank's part of the batch."""
        x = checked_views(embeddings)
        with full_precision(x.device):
            x = all_gather_with_grad(x, 1)  # images of all ranks are negatives
            refuse(self.config.check(x.shape[1], x.shape[2]))
            return differentiated(self._nt_xent, x)

    def _nt_xent(self, x: Tensor) -> Tensor:
        V, N, _ = x.shape
        z = normalized(x).flatten(0, 1)
        logits = (z @ z.mT / self.config.temperature).view(V, N, V, N)
        same_image = logits.diagonal(dim1=1, dim2=3)  # [V, V, N]
        positive = same_image.clone()
        same_image.fill_(-math.inf)
        others = logits.logsumexp(-1)  # [V, N, V]: all other images of a view as one logit
        pairs = [
            info_nce(positive[a, b], torch.stack([others[a, :, a], others[a, :, b]], -1))
            for a, b in permutations(range(V), 2)
        ]
        return torch.stack(pairs).mean()


def info_nce(positive: Tensor, negatives: Tensor) -> Tensor:
    """Return the mean of -log(exp(p) / (exp(p) + sum exp(n))) over logits p and their negatives n.

    Equation 1 of arXiv 2002.05709, and of arXiv 1911.05722 (MoCo). `positive` [...], `negatives`
    [..., K].
    """
    return -F.logsigmoid(positive - negatives.logsumexp(-1)).mean()
