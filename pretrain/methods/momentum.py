"""A momentum branch: copies of encoder and projector that follow them and get no gradient.

V views, N images, D embedding dimensions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pretrain.config.pretrain import ModelConfig
from pretrain.models import SelfSupervisedModel
from pretrain.runtime.device import Views


class MomentumModel(SelfSupervisedModel):
    """Encoder and projector, and a branch that is their exponential moving average.

    Parameters k of the branch follow those q of the model after every step: k <- m k + (1 - m) q.
    `momentum` is m: `first_momentum` at the first step and 1 at the last, along half a cosine
    (Grill et al., arXiv 2006.07733, section 3.2), or the same at all steps unless it `rises`.

    The branch is in training mode, as published: its BatchNorm takes the batch's statistics and
    keeps running ones of its own. Nothing is drawn for it, and it gets no gradient.
    """

    def __init__(self, config: ModelConfig, first_momentum: float, *, rises: bool = True) -> None:
        super().__init__(config)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.momentum = self.first_momentum = first_momentum
        self.rises = rises

    @torch.no_grad()
    def embed_by_branch(self, views: Views) -> Tensor:
        """Return the branch's embedding `[V, N, D]` of `views` of any sizes."""
        return self.embed(self.momentum_encoder, self.momentum_projector, views)[1]

    def encoders(self) -> Iterable[nn.Module]:
        """As of every model."""
        return [self.encoder, self.momentum_encoder]

    def set_progress(self, progress: float) -> None:
        """As of every model."""
        if self.rises:
            rest = (1 + math.cos(math.pi * progress)) / 2
            self.momentum = 1 - (1 - self.first_momentum) * rest

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the branch follow, parameter by parameter of the same name."""
        branch: list[Tensor] = []
        online: list[Tensor] = []
        for followed, copied in (
            (self.encoder, self.momentum_encoder),
            (self.projector, self.momentum_projector),
        ):
            parameters = dict(followed.named_parameters())
            for name, parameter in copied.named_parameters():
                branch.append(parameter)
                online.append(parameters[name])
        torch._foreach_lerp_(branch, online, 1 - self.momentum)
