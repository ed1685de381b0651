"""BYOL: a predictor behind the projector, and a momentum branch that makes its targets.

V views, N images, D embedding dimensions.
"""

from __future__ import annotations

from pretrain.config.methods import BYOLConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.methods.momentum import MomentumModel
from pretrain.models import Features
from pretrain.models.encoder import build_mlp
from pretrain.runtime.device import Views


class BYOLModel(MomentumModel):
    """Encoder, projector, and a predictor of the branch's embeddings (arXiv 2006.07733).

    The predictor is Linear-BatchNorm-ReLU-Linear, from D over `predictor_hidden` to D, and like the
    projector it is called once over all views together.
    """

    def __init__(self, config: PretrainConfig) -> None:
        assert isinstance(config.loss, BYOLConfig)
        super().__init__(config.model, config.loss.momentum)
        dim = config.model.embedding_dim
        self.predictor = build_mlp([dim, config.loss.predictor_hidden, dim])

    def forward(self, views: Views) -> Features:
        """Return the features of `views`, predictions and targets of each."""
        encoding, embedding = self.embed(self.encoder, self.projector, views)
        predictions = self.predictor(embedding.flatten(0, 1)).view_as(embedding)
        beside = {"predictions": predictions, "targets": self.embed_by_branch(views)}
        return Features(encoding, embedding, beside)
