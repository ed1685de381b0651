"""Losses on the embeddings of several views."""

from pretrain.losses.build import build_loss
from pretrain.losses.cw_rgp import CWRGPLoss
from pretrain.losses.w_mse import WMSELoss

__all__ = ["CWRGPLoss", "WMSELoss", "build_loss"]
