"""Self-supervised losses on embeddings of several views: W-MSE, CW-RGP, and their controls.

Legend: V views, N batch, D embedding dimension, n sub-batch, S = N / n sub-batches, T iterations.

Every loss is called as `loss(embeddings [V, N, D], *, generator, batch_permutation,
channel_partition)`, computes in float32 (float64 for float64 embeddings) with autocast off, and
returns a scalar. Non-finite embeddings give NaN.

Several processes: `embeddings` are this rank's [V, N / world, D]. What depends on the whole batch
(batch whitening, BatchNorm, the covariance term) gathers it with gradients. The convention is
that of DistributedDataParallel: after its mean over ranks the parameters' gradients are those of
one process holding the whole batch. Channel whitening treats each sub-batch on its own, so its
sub-batches stay within a rank and nothing is gathered; each rank returns the loss of its part,
whose mean over ranks is the loss of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from torch import nn

from pretrain.config.loss import LossConfig
from pretrain.losses.controls import BatchNormLoss, PlainLoss
from pretrain.losses.whitening import WhiteningLoss


class WMSELoss(WhiteningLoss):
    """W-MSE (Ermolov et al., arXiv 2007.06346, eq. 5-7): batch whitening, Cholesky by default.

    Method `newton` takes IterNorm's 5 steps; `build_loss` takes another `newton_iterations`.

    In float32 keep the sub-batch at an eighth or more above the whitened dimension, better twice
    it. With channels that are hardly correlated the gradient is off by about 1e-6 of its norm at
    twice, 5e-5 at nine eighths and 1e-3 to more than 1 at one or two samples above, where only
    float64 embeddings or `eps` > 0 help: such a covariance is badly conditioned, but too seldom
    singular to get a ridge. Strong correlation costs digits as well, here as in any float32 code.
    """

    def __init__(
        self,
        sub_batch: int,
        *,
        iterations: int = 1,
        normalize: bool = True,
        method: str = "cholesky",
        groups: int = 1,
        eps: float = 0.0,
    ) -> None:
        super().__init__(
            loss_config(
                name="w-mse",
                sub_batch=sub_batch,
                iterations=iterations,
                normalize=normalize,
                method=method,
                groups=groups,
                eps=eps,
            )
        )


class CWRGPLoss(WhiteningLoss):
    """CW-RGP (Weng et al., arXiv 2210.03586, section 4.2): channel whitening, random partition.

    Method `newton` takes IterNorm's 5 steps; `build_loss` takes another `newton_iterations`.
    In float32 the rule of `WMSELoss` holds with channels per group for samples and the sub-batch
    for the dimension.
    """

    def __init__(  # noqa: PLR0913 - the settings of one published loss
        self,
        sub_batch: int,
        groups: int,
        *,
        iterations: int = 1,
        normalize: bool = True,
        method: str = "zca",
        eps: float = 0.0,
        covariance_weight: float = 0.0,
    ) -> None:
        super().__init__(
            loss_config(
                name="cw-rgp",
                sub_batch=sub_batch,
                groups=groups,
                iterations=iterations,
                normalize=normalize,
                method=method,
                eps=eps,
                covariance_weight=covariance_weight,
            )
        )


_LOSSES: dict[str, Callable[[LossConfig], nn.Module]] = {
    "batch-norm": BatchNormLoss,
    "cw-rgp": WhiteningLoss,
    "none": PlainLoss,
    "w-mse": WhiteningLoss,
    "whitening": WhiteningLoss,
}


def build_loss(config: LossConfig) -> nn.Module:
    """Return the loss that `config` names."""
    if config.name not in _LOSSES:
        raise ValueError(f"unknown loss {config.name!r}; known: {', '.join(_LOSSES)}")
    return _LOSSES[config.name](config)


def loss_config(**settings: Any) -> LossConfig:
    """Return the config with these settings; all faults in one line.

    Raises:
        ValueError: naming each setting and what is wrong with it.
    """
    try:
        return LossConfig(**settings)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise ValueError("; ".join(faults)) from None
