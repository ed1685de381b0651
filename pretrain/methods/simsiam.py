"""SimSiam: a predictor behind the projector, whose learning rate may stay at its peak.

V views, N images, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pretrain.config.methods import SimSiamConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.models import Features, SelfSupervisedModel
from pretrain.models.encoder import build_mlp
from pretrain.runtime.device import Views


class SimSiamModel(SelfSupervisedModel):
    """Encoder, projector, and a predictor of other views' embeddings (arXiv 2011.10566).

    The predictor is Linear-BatchNorm-ReLU-Linear, from D over `predictor_hidden` to D, and like the
    projector it is called once over all views together. The published projector has three layers
    and `last_batchnorm: plain`, which the model config says.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config.model)
        assert isinstance(config.loss, SimSiamConfig)
        dim = config.model.embedding_dim
        self.predictor = build_mlp([dim, config.loss.predictor_hidden, dim])
        self.constant_predictor_rate = config.loss.constant_predictor_rate

    def forward(self, views: Views) -> Features:
        """Return the features of `views`, and what is predicted from each."""
        encoding, embedding = self.embed(self.encoder, self.projector, views)
        predictions = self.predictor(embedding.flatten(0, 1)).view_as(embedding)
        return Features(encoding, embedding, {"predictions": predictions})

    def constant_rate_parameters(self) -> Iterable[nn.Parameter]:
        """As of every model."""
        return self.predictor.parameters() if self.constant_predictor_rate else []
