"""MoCo: a query is told to find its key among those of a queue (arXiv 1911.05722 and 2003.04297).

Legend: N batch, K keys in the queue, D embedding dimension.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pretrain.config.methods import MoCoConfig
from pretrain.losses.base import Loss, differentiated, normalized, refuse
from pretrain.losses.info_nce import info_nce
from pretrain.runtime.distributed import world_size
from pretrain.whitening.functional import full_precision


class MoCoLoss(Loss):
    """InfoNCE of a query against its key and the queue (He et al., arXiv 1911.05722, equation 1).

    One direction: queries are of the first view, keys of the second. A query meets no other image
    of its batch, only keys of earlier steps, so each rank returns the loss of its part, whose mean
    over ranks is that of the whole.
    """

    config: MoCoConfig

    def forward(self, embeddings: Tensor, *, keys: Tensor, queue: Tensor, **_: Any) -> Tensor:
        """Return the scalar loss of the queries `embeddings` [1, N, D].

        `keys` [N, D] and `queue` [K, D] are unit vectors and get no gradient.

        Raises:
            ValueError: if the shapes do not go together.
        """
        N, D = embeddings.shape[1:]
        if embeddings.shape[0] != 1 or keys.shape != (N, D) or queue.shape[1:] != (D,):
            raise ValueError(
                f"queries {list(embeddings.shape)}, keys {list(keys.shape)}, queue "
                f"{list(queue.shape)}: want [1, N, D], [N, D] and [K, D]"
            )
        refuse(self.config.check(N * world_size(), D))
        x = embeddings[0] if embeddings.dtype == torch.float64 else embeddings[0].float()
        told = partial(self._info_nce, keys=keys.to(x.dtype), queue=queue.to(x.dtype))
        with full_precision(x.device):
            return differentiated(told, x)

    def _info_nce(self, x: Tensor, *, keys: Tensor, queue: Tensor) -> Tensor:
        queries = normalized(x) / self.config.temperature
        return info_nce((queries * keys).sum(-1), queries @ queue.mT)
