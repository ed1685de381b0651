"""INTL with a momentum branch, which sees the first view alone.

V views, N images, D embedding dimensions.
"""

from __future__ import annotations

from pretrain.config.methods import INTLConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.methods.momentum import MomentumModel
from pretrain.models import Features
from pretrain.runtime.device import Views


class INTLMomentumModel(MomentumModel):
    """Encoder and projector of all views but the first, whose embedding the branch makes.

    As the published code of arXiv 2305.16789 has it. There the branch follows at the beginning of a
    step and here at the end of the one before, with a momentum that is a step older.
    """

    def __init__(self, config: PretrainConfig) -> None:
        assert isinstance(config.loss, INTLConfig) and config.loss.momentum is not None
        super().__init__(config.model, config.loss.momentum)

    def forward(self, views: Views) -> Features:
        """Return the features [V - 1, N, ...] of `views` but the first, the target [1, N, D]."""
        encoding, embedding = self.embed(self.encoder, self.projector, views[1:])
        return Features(encoding, embedding, {"target": self.embed_by_branch(views[:1])})
