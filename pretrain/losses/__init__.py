"""Losses on the embeddings of several views."""

from pretrain.losses.build import CWRGPLoss, WMSELoss, build_loss

__all__ = ["CWRGPLoss", "WMSELoss", "build_loss"]
