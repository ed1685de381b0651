"""Encoder, projector and what a method adds to them, by the name of its loss."""

from collections.abc import Callable

from pretrain.config.methods import INTLConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.methods.byol import BYOLModel
from pretrain.methods.intl import INTLMomentumModel
from pretrain.methods.moco import MoCoModel
from pretrain.methods.simsiam import SimSiamModel
from pretrain.models import SelfSupervisedModel

__all__ = ["build_model"]

_METHODS: dict[str, Callable[[PretrainConfig], SelfSupervisedModel]] = {
    "byol": BYOLModel,
    "moco-v2": MoCoModel,
    "simsiam": SimSiamModel,
}


def build_model(config: PretrainConfig) -> SelfSupervisedModel:
    """Return the model that the loss of `config` needs: encoder and projector, for most."""
    build = _METHODS.get(config.loss.name)
    if isinstance(config.loss, INTLConfig) and config.loss.momentum is not None:
        build = INTLMomentumModel
    return SelfSupervisedModel(config.model) if build is None else build(config)
