"""Losses on the embeddings of several views, by name."""

from collections.abc import Callable
from typing import Any

from pretrain.config.loss import LossSettings
from pretrain.losses.barlow_twins import BarlowTwinsLoss
from pretrain.losses.base import Loss, WhiteningLoss
from pretrain.losses.controls import BatchNormLoss, PlainLoss
from pretrain.losses.cw_rgp import CWRGPLoss
from pretrain.losses.info_nce import SimCLRLoss
from pretrain.losses.intl import INTLLoss
from pretrain.losses.moco import MoCoLoss
from pretrain.losses.negative_cosine import BYOLLoss, SimSiamLoss
from pretrain.losses.vicreg import VICRegLoss
from pretrain.losses.w_mse import WMSELoss

__all__ = ["CWRGPLoss", "WMSELoss", "WhiteningLoss", "build_loss"]

_WHITENING: dict[str, type[WhiteningLoss]] = {"batch": WMSELoss, "channels": CWRGPLoss}
_LOSSES: dict[str, Callable[[Any], Loss]] = {  # each from the settings of that name
    "barlow-twins": BarlowTwinsLoss,
    "batch-norm": BatchNormLoss,
    "byol": BYOLLoss,
    "cw-rgp": CWRGPLoss.from_config,
    "intl": INTLLoss,
    "moco-v2": MoCoLoss,
    "none": PlainLoss,
    "simclr": SimCLRLoss,
    "simsiam": SimSiamLoss,
    "vicreg": VICRegLoss,
    "w-mse": WMSELoss.from_config,
    "whitening": lambda config: _WHITENING[str(config.over)].from_config(config),
}


def build_loss(config: LossSettings) -> Loss:
    """Return the loss that `config` names."""
    if config.name not in _LOSSES:
        raise ValueError(f"unknown loss {config.name!r}; known: {', '.join(_LOSSES)}")
    return _LOSSES[config.name](config)
