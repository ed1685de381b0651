"""MoCo v2: a momentum branch that makes keys, and a queue of those of earlier steps.

N images of this process, B of all processes, K keys in the queue, D embedding dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.config.methods import MoCoConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.losses.base import normalized
from pretrain.methods.momentum import MomentumModel
from pretrain.models import Features
from pretrain.runtime.device import Views
from pretrain.runtime.distributed import all_gather_with_grad, broadcast, rank, world_size


class MoCoModel(MomentumModel):
    """Queries of the first view, keys of the second, and a queue (arXiv 1911.05722, 2003.04297).

    The queue begins as random unit vectors, as published, drawn from the seed and so the same on
    all ranks. After a step the keys of all processes take the places of the oldest, in the order of
    the global batch, whether it came in parts or not: the queue is that of one process.

    With several processes the images of the second view are shuffled among them before the branch
    sees them (section 3.3), so that its BatchNorm takes other images together than the encoder's.
    The permutation is drawn on rank 0 from torch's random state, which is part of a checkpoint.

    The queue is no buffer but a parameter that is not trained: DistributedDataParallel sends
    buffers to all ranks before every forward pass, 34 MB for 65,536 keys of 128 dimensions.
    """

    queue_pointer: Tensor  # place of the oldest key; it is never read by the host, which would wait

    def __init__(self, config: PretrainConfig) -> None:
        assert isinstance(config.loss, MoCoConfig)
        super().__init__(config.model, config.loss.momentum, rises=False)
        drawn = torch.randn(config.loss.queue, config.model.embedding_dim)
        self.queue = nn.Parameter(normalized(drawn), requires_grad=False)
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.int64))
        self.new_keys: list[Tensor] = []  # [world, N, D] of each part of this step's batch

    def forward(self, views: Views) -> Features:
        """Return the features of the first of two `views`, [1, N, ...].

        Beside them the keys [N, D] of the second view, and the queue [K, D]; unit vectors all.
        """
        encoding, embedding = self.embed(self.encoder, self.projector, views[:1])
        keys = self._keys(views[1][None])
        return Features(encoding, embedding, {"keys": keys, "queue": self.queue})

    @torch.no_grad()
    def _keys(self, views: Tensor) -> Tensor:
        """Return keys [N, D] of `views [1, N, 3, H, W]`; in training keep those of all processes.

        Every rank has to call this in training. In evaluation nothing is shuffled, sent or kept.
        """
        world, N = world_size(), views.shape[1]
        if not self.training or world == 1:
            keys = self._unit_vectors(views)
            everybodys = keys
        else:
            mine = slice(rank() * N, (rank() + 1) * N)
            order = broadcast(torch.randperm(world * N), views.device)
            shuffled = self._unit_vectors(all_gather_with_grad(views, 1)[:, order[mine]])
            everybodys = all_gather_with_grad(shuffled)[order.argsort()]
            keys = everybodys[mine]
        if self.training:
            self.new_keys.append(everybodys.view(world, N, -1))
        return keys

    def _unit_vectors(self, views: Tensor) -> Tensor:
        return normalized(self.embed_by_branch(views)[0].to(self.queue.dtype))

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the branch follow, and put the keys of this step, [B, D], into the queue."""
        super().after_step()
        keys = torch.cat(self.new_keys, 1).flatten(0, 1)
        self.new_keys.clear()
        places = torch.arange(len(keys), device=keys.device) + self.queue_pointer
        self.queue.index_copy_(0, places % len(self.queue), keys)
        self.queue_pointer.add_(len(keys)).remainder_(len(self.queue))
