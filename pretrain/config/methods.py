"""Settings of the methods that a whitening loss is compared with, a class each. Imports no torch.

A method is a loss on embeddings and what it adds to encoder and projector: a predictor, a momentum
branch, a queue. `AnyLossConfig` is what a pretraining config takes as `loss`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveFloat

from pretrain.config.base import Fraction, NonNegative
from pretrain.config.loss import LossConfig, LossSettings

Width = Annotated[int, Field(ge=1, le=2**20)]


class SimCLRConfig(LossSettings):
    """InfoNCE among all views of the global batch (arXiv 2002.05709)."""

    gathers = True

    name: Literal["simclr"]
    """which loss"""
    temperature: PositiveFloat = 0.5
    """by which cosines are divided: 0.5 on small images, 0.1 on ImageNet"""


class BarlowTwinsConfig(LossSettings):
    """Channels of two views correlate with themselves alone (arXiv 2103.03230)."""

    gathers = True

    name: Literal["barlow-twins"]
    """which loss"""
    redundancy_weight: NonNegative = 0.0051
    """weight of the correlations between channels"""
    scale: PositiveFloat = 1.0
    """factor on the loss; the published code has a smaller rate of biases and norms instead"""
    eps: PositiveFloat = 1e-5
    """added to the variance of a channel"""


class VICRegConfig(LossSettings):
    """Views agree, channels vary and do not covary (arXiv 2105.04906)."""

    gathers = True

    name: Literal["vicreg"]
    """which loss"""
    invariance_weight: NonNegative = 25.0
    """weight of the mean squared distance between views"""
    variance_weight: NonNegative = 25.0
    """weight of what the channels' standard deviation lacks to 1, mean over views"""
    covariance_weight: NonNegative = 1.0
    """weight of the squared covariances between channels, summed over both views"""
    eps: PositiveFloat = 1e-4
    """added to the variance of a channel"""


class SimSiamConfig(LossSettings):
    """A predictor of another view's embedding, whose gradient stops (arXiv 2011.10566)."""

    takes_parts = True

    name: Literal["simsiam"]
    """which loss"""
    predictor_hidden: Width = 512
    """width of the predictor's hidden layer, channels"""
    constant_predictor_rate: bool = True
    """whether the predictor's learning rate stays at its peak"""


class BYOLConfig(LossSettings):
    """A predictor of a momentum branch's embedding of another view (arXiv 2006.07733)."""

    takes_parts = True

    name: Literal["byol"]
    """which loss"""
    predictor_hidden: Width = 1024
    """width of the predictor's hidden layer, channels"""
    momentum: Fraction = 0.99
    """of the momentum branch at the first step; rises to 1 along half a cosine"""

    def passes(self, num_views: int) -> list[int]:
        """As of every loss; the branch sees each view too."""
        return [4] * num_views


class MoCoConfig(LossSettings):
    """InfoNCE of a query against its key and a queue of earlier keys (arXiv 2003.04297)."""

    gathers = True
    takes_parts = True
    most_views = 2

    name: Literal["moco-v2"]
    """which loss"""
    queue: Annotated[int, Field(ge=2, le=2**24)] = 65536
    """keys that are negatives, those of the last steps"""
    temperature: PositiveFloat = 0.2
    """by which cosines are divided"""
    momentum: Fraction = 0.999
    """of the branch that makes the keys, the same at all steps"""

    def passes(self, num_views: int) -> list[int]:
        """As of every loss; the second view is seen by the branch alone."""
        return [3] + [1] * (num_views - 1)

    def check(self, batch_size: int, embedding_dim: int, num_ranks: int = 1) -> list[str]:
        """As of every loss; the queue takes the keys of a whole batch."""
        faults = super().check(batch_size, embedding_dim, num_ranks)
        if self.queue < batch_size:
            faults.append(
                f"queue of {self.queue} keys cannot take those of a batch of {batch_size} images; "
                f"use at least {batch_size}"
            )
        return faults


class INTLConfig(LossSettings):
    """Iterative whitening with a loss on the trace it leaves (arXiv 2305.16789)."""

    gathers = True

    name: Literal["intl"]
    """which loss"""
    over: Literal["batch", "channels"] = "channels"
    """what is whitened: with `channels` they are the observations, as published"""
    newton_iterations: int = Field(default=4, ge=1, le=64)
    """steps of IterNorm"""
    trace_weight: NonNegative | None = None
    """of the trace loss; unless given 0.01 (log2 N - 3) over channels, 0.01 (log2 D - 3) over the
    batch, and 0 where that is below 0"""
    momentum: Fraction | None = None
    """of a momentum branch for the first view at the first step, rising to 1 along half a cosine;
    none unless given"""

    def passes(self, num_views: int) -> list[int]:
        """As of every loss; the first view is the branch's alone, where there is one."""
        return [3 if self.momentum is None else 1] + [3] * (num_views - 1)

    def check(self, batch_size: int, embedding_dim: int, num_ranks: int = 1) -> list[str]:
        """As of every loss; the variance is that of two channels or more."""
        faults = super().check(batch_size, embedding_dim, num_ranks)
        if self.over == "channels" and embedding_dim < 2:
            faults.append(
                f"embedding of {embedding_dim} channel has no variance over channels; use at least "
                "2, or over 'batch'"
            )
        return faults

    def weight_of_trace(self, batch_size: int, embedding_dim: int) -> float:
        """Return the weight of the trace loss for N `batch_size` (global) and D."""
        if self.trace_weight is not None:
            return self.trace_weight
        size = batch_size if self.over == "channels" else embedding_dim
        return max(0.0, 0.01 * (math.log2(size) - 3.0))


AnyLossConfig = Annotated[
    LossConfig
    | SimCLRConfig
    | BarlowTwinsConfig
    | VICRegConfig
    | SimSiamConfig
    | BYOLConfig
    | MoCoConfig
    | INTLConfig,
    Field(discriminator="name"),
]
LOSS_NAMES: tuple[str, ...] = tuple(
    name
    for settings in get_args(get_args(AnyLossConfig)[0])
    for name in get_args(settings.model_fields["name"].annotation)
)
