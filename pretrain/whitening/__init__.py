"""Whitening of embeddings over the batch or over the channels."""

from pretrain.whitening.functional import whiten

__all__ = ["whiten"]
