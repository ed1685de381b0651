"""Self-supervised losses on embeddings of several views, by name.

Legend: V views, N batch, D embedding dimension.

Every loss is called as `loss(embeddings [V, N, D], *, generator, batch_permutation,
channel_partition)`, computes in float32 (float64 for float64 embeddings) with autocast off, and
returns a scalar. Non-finite embeddings give NaN.

Several processes: `embeddings` are this rank's [V, N / world, D]. What depends on the whole batch
(batch whitening, BatchNorm, the covariance term) gathers it with gradients. The convention is
that of DistributedDataParallel: after its mean over ranks the parameters' gradients are those of
one process holding the whole batch. Channel whitening treats each sub-batch apart, so its
sub-batches stay within a rank and nothing is gathered; each rank returns the loss of its part,
whose mean over ranks is the loss of the whole.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pretrain.config.loss import LossConfig
from pretrain.losses.controls import BatchNormLoss, PlainLoss
from pretrain.losses.whitening import WhiteningLoss

_LOSSES: dict[str, Callable[[LossConfig], nn.Module]] = {
    "batch-norm": BatchNormLoss,
    "cw-rgp": WhiteningLoss,  # `CWRGPLoss` is the same with keywords for a config
    "none": PlainLoss,
    "w-mse": WhiteningLoss,  # `WMSELoss` likewise
    "whitening": WhiteningLoss,
}


def build_loss(config: LossConfig) -> nn.Module:
    """Return the loss that `config` names."""
    if config.name not in _LOSSES:
        raise ValueError(f"unknown loss {config.name!r}; known: {', '.join(_LOSSES)}")
    return _LOSSES[config.name](config)
