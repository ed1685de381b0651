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

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pretrain.distributed import broadcast_from_first, gather_with_gradient, world_size
from pretrain.loss_config import LossConfig, sub_batch_faults, whitening_faults
from pretrain.pair_distance import Plan, pair_distance, whitened_pair_distance
from pretrain.whitening import (
    Arrangement,
    Whitening,
    full_precision,
    refuse_no_permutation,
    whiten,
)


class WhiteningLoss(nn.Module):
    """Mean squared distance between the whitened views of an image, over all pairs of views.

    Each of T rounds shuffles the batch, cuts it into sub-batches (the same images in every view),
    whitens every sub-batch of every view on its own and compares the views. With a random
    partition the channels are dealt to the groups anew for every round, sub-batch and view.

    `regularized_count` counts the factorisations that needed a ridge (`pretrain.inverse_roots`);
    it is part of the state dict.
    `covariance_weight` is a plain attribute: set it to 0 to end that term during training.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        if config.sub_batch is None or config.over is None or config.method is None:
            raise ValueError(f"loss {config.name!r} whitens nothing; build it with build_loss")
        self.config = config
        self.sub_batch = config.sub_batch
        self.covariance_weight = config.covariance_weight
        self._over = config.over
        self._whitening = Whitening(config.method, config.eps, config.newton_iterations)
        self.num_regularized: Tensor
        self.register_buffer("num_regularized", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        """Return the settings."""
        return " ".join(f"{key}={value}" for key, value in self.config.model_dump().items())

    @property
    def regularized_count(self) -> int:
        """Factorisations that needed a ridge so far, before a resume too; waits for the device.

        Under batch whitening every rank counts those of the global batch.
        """
        return int(self.num_regularized)

    def forward(
        self,
        embeddings: Tensor,
        *,
        generator: torch.Generator | None = None,
        batch_permutation: Tensor | None = None,
        channel_partition: Tensor | None = None,
    ) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D].

        `batch_permutation` [T, N] and `channel_partition` [T, S, V, D] are drawn from `generator`
        unless given (an empty partition means channels in order). Under several processes, batch
        whitening takes both for the global batch and draws them on rank 0.

        Raises:
            ValueError: if the sizes cannot work.
        """
        _check_views(embeddings)
        with full_precision(embeddings.device):
            x = _computed(embeddings)
            penalty = None
            if self.covariance_weight:
                penalty = covariance_penalty(gather_with_gradient(x, 1))
            if self._over == "batch":
                x = gather_with_gradient(x, 1)
            _, N, D = x.shape
            faults = sub_batch_faults(self.sub_batch, N, self._over) + whitening_faults(
                self._over, self.sub_batch, D, self.config.groups, self.config.eps
            )
            _refuse(faults)
            plan = self._plan(
                x,
                self._permutation(x, batch_permutation, generator),
                self._partition(x, channel_partition, generator),
            )
            loss, count = whitened_pair_distance(x, plan)
            self.num_regularized = self.num_regularized.to(count.device) + count
            return loss if penalty is None else loss + self.covariance_weight * penalty

    @torch.no_grad()
    def whitened(self, embedding: Tensor) -> Tensor:
        """Return `embedding` [N, D] of one view as the loss whitens it; draws and counts nothing.

        Sub-batches and groups take images and channels in order; images that fill no sub-batch
        are left out. Under several processes batch whitening gathers, so that all must call this.

        Raises:
            ValueError: if the sizes cannot work.
        """
        if self._over == "batch":
            embedding = gather_with_gradient(embedding, 0)
        N, D = embedding.shape
        size = min(self.sub_batch, N)
        parts = embedding[: N - N % size].view(-1, size, D)
        setting = self._whitening
        output = whiten(
            parts,
            over=self._over,
            method=setting.method,
            groups=self.config.groups,
            eps=setting.eps,
            newton_iterations=setting.newton_iterations,
        )
        return output.view(-1, D)

    def _plan(self, x: Tensor, permutation: Tensor, partition: Tensor | None) -> Plan:
        rows = permutation.view(permutation.shape[0], -1, self.sub_batch)
        if partition is not None:
            partition = partition.permute(2, 0, 1, 3).reshape(-1, x.shape[-1])
        arrangement = Arrangement(self._over, self.config.groups, partition)
        return Plan(rows, arrangement, self._whitening, self.config.normalize)

    def _permutation(
        self, x: Tensor, given: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        shape = (self.config.iterations, x.shape[1])
        if given is None:
            return self._shared(_draw_permutations(shape, generator), x.device)
        return _checked("batch_permutation", given, shape).to(x.device)

    def _partition(
        self, x: Tensor, given: Tensor | None, generator: torch.Generator | None
    ) -> Tensor | None:
        V, N, D = x.shape
        shape = (self.config.iterations, N // self.sub_batch, V, D)
        if given is not None:
            return _checked("channel_partition", given, shape).to(x.device) if len(given) else None
        if not self.config.random_partition:
            return None
        return self._shared(_draw_permutations(shape, generator), x.device)

    def _shared(self, drawn: Tensor, device: torch.device) -> Tensor:
        """Return `drawn` on `device`, the same on all ranks where they share a batch."""
        return broadcast_from_first(drawn, device) if self._over == "batch" else drawn.to(device)


class WMSELoss(WhiteningLoss):
    """W-MSE (Ermolov et al., arXiv 2007.06346, eq. 5-7): batch whitening, Cholesky by default.

    Method `newton` takes IterNorm's 5 steps; `build_loss` takes another `newton_iterations`.

    In float32 keep the sub-batch at an eighth or more above the whitened dimension, better twice
    it. The gradient is off by about 1e-6 of its norm at twice, 5e-5 at nine eighths and 1e-3 to
    more than 1 at one or two samples above, where only float64 embeddings or `eps` > 0 help: such
    a covariance is badly conditioned, but too seldom singular to get a ridge.
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


class BatchNormLoss(nn.Module):
    """The control that only standardises each channel over the (global) batch of each view."""

    regularized_count = 0

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, embeddings: Tensor, **_: Any) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D]; nothing is drawn."""
        _check_views(embeddings)
        with full_precision(embeddings.device):
            x = gather_with_gradient(_computed(embeddings), 1)
            _refuse(self.config.check(x.shape[1], x.shape[2]))
            centred = x - x.mean(1, keepdim=True)
            variance = centred.square().mean(1, keepdim=True) + self.config.eps
            return pair_distance(centred * variance.rsqrt(), normalize=self.config.normalize)


class PlainLoss(nn.Module):
    """The control without whitening: views are compared as they are, and collapse."""

    regularized_count = 0

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, embeddings: Tensor, **_: Any) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D], of this rank's part only."""
        _check_views(embeddings)
        _refuse(self.config.check(embeddings.shape[1] * world_size(), embeddings.shape[2]))
        with full_precision(embeddings.device):
            return pair_distance(_computed(embeddings), normalize=self.config.normalize)


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


def covariance_penalty(embeddings: Tensor) -> Tensor:
    """Return the squared off-diagonal covariances between samples of `embeddings` [V, N, D].

    The covariance of two samples is over their channels; the squares are summed over pairs and
    views and divided by N.
    """
    _, N, D = embeddings.shape
    centred = embeddings - embeddings.mean(-1, keepdim=True)
    covariance = centred @ centred.mT / (D - 1)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    return (covariance.square().sum() - diagonal.square().sum()) / N


def _computed(embeddings: Tensor) -> Tensor:
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def _refuse(faults: list[str]) -> None:
    if faults:
        raise ValueError("; ".join(faults))


def _check_views(embeddings: Tensor) -> None:
    if embeddings.dim() != 3 or embeddings.shape[0] < 2:
        raise ValueError(
            f"embeddings want [V views, N batch, D] with at least 2 views, "
            f"got {list(embeddings.shape)}"
        )


def _draw_permutations(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Return independent permutations of the last dimension, [...], from `generator`."""
    device = "cpu" if generator is None else generator.device
    num = torch.Size(shape[:-1]).numel()
    drawn = [torch.randperm(shape[-1], generator=generator, device=device) for _ in range(num)]
    return torch.stack(drawn).view(shape)


def _checked(name: str, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(indices.shape) != shape:
        raise ValueError(f"{name} has shape {list(indices.shape)}, want {list(shape)}")
    indices = indices.long()
    refuse_no_permutation(name, indices)
    return indices
