"""The loss that whitens sub-batches of every view and compares the views.

Legend: V views, N batch, D embedding dimension, n sub-batch, S = N / n sub-batches, T iterations.
What is common to all losses, several processes included, is in `pretrain.losses.build`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.config.loss import LossConfig, sub_batch_faults, whitening_faults
from pretrain.losses.pairwise_mse import checked_views, pairwise_mse, refuse
from pretrain.runtime.cpu import keep_freed_memory
from pretrain.runtime.distributed import all_gather_with_grad, broadcast
from pretrain.whitening.functional import (
    ChannelGroups,
    full_precision,
    inverse_permutation,
    refuse_no_permutation,
    whiten,
    whiten_grouped,
)
from pretrain.whitening.inverse_sqrt import WhiteningSettings


class WhiteningLoss(nn.Module):
    """Mean squared distance between the whitened views of an image, over all pairs of views.

    Each of T rounds shuffles the batch, cuts it into sub-batches (the same images in every view),
    whitens every sub-batch of every view apart and compares the views. With a random
    partition the channels are put into groups anew for every round, sub-batch and view.

    `regularized_count` counts the factorisations that needed a ridge (see
    `pretrain.whitening.inverse_sqrt`); it is part of the state dict.
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
        self._settings = WhiteningSettings(config.method, config.eps, config.newton_iterations)
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
        x = checked_views(embeddings)
        if x.device.type == "cpu":
            keep_freed_memory()
        with full_precision(x.device):
            penalty = self._penalty(x) if self.covariance_weight else None
            if self._over == "batch":
                x = all_gather_with_grad(x, 1)
            V, N, D = x.shape
            faults = sub_batch_faults(self.sub_batch, N, self._over) + whitening_faults(
                self._over, self.sub_batch, D, self.config.groups, self.config.eps
            )
            refuse(faults)
            permutation = self._permutation(x, batch_permutation, generator)
            partition = self._partition(x, channel_partition, generator)
            if partition is not None:
                partition = partition.permute(2, 0, 1, 3).reshape(-1, D)
            groups = ChannelGroups(self._over, self.config.groups, partition)
            samples = _Shuffle.apply(x, permutation).view(-1, self.sub_batch, D)
            white, count = whiten_grouped(samples, groups, self._settings)
            self.num_regularized = self.num_regularized.to(count.device).add_(count)
            loss = pairwise_mse(
                white.view(V, -1, *white.shape[1:]),
                normalize=self.config.normalize,
                dim=groups.channel_dim,
            )
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
            embedding = all_gather_with_grad(embedding, 0)
        N, D = embedding.shape
        size = min(self.sub_batch, N)
        parts = embedding[: N - N % size].view(-1, size, D)
        output = whiten(
            parts,
            over=self._over,
            method=self._settings.method,
            groups=self.config.groups,
            eps=self._settings.eps,
            newton_iterations=self._settings.newton_iterations,
        )
        return output.view(-1, D)

    def _penalty(self, x: Tensor) -> Tensor:
        """Return the mean covariance penalty of parts of the batch, or that of the global batch."""
        size = self.config.covariance_batch
        if size is None:
            return covariance_penalty(all_gather_with_grad(x, 1))
        _, N, D = x.shape
        if N % size:
            refuse([f"batch of {N} images is not divisible by covariance_batch {size}"])
        return covariance_penalty(x.reshape(-1, size, D)) * (size / N)

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
        return broadcast(drawn, device) if self._over == "batch" else drawn.to(device)


class _Shuffle(torch.autograd.Function):
    """Images of x [V, N, D] in T orders `permutation` [T, N], as [V, T N, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, permutation: Tensor) -> Tensor:
        ctx.save_for_backward(permutation)
        return x.index_select(1, permutation.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        back = inverse_permutation(ctx.saved_tensors[0])
        T, N = back.shape
        back += N * torch.arange(T, device=back.device)[:, None]
        grad = grad.index_select(1, back.flatten())
        return grad if T == 1 else grad.view(len(grad), T, N, -1).sum(1), None


class _CovariancePenalty(torch.autograd.Function):
    """`covariance_penalty`; its derivative is made in the forward pass, so in full precision."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor) -> Tensor:
        _, N, D = embeddings.shape
        centred = embeddings - embeddings.mean(-1, keepdim=True)
        covariance = centred @ centred.mT / (D - 1)
        covariance.diagonal(dim1=-2, dim2=-1).zero_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((covariance @ centred).mul_(4.0 / (N * (D - 1))))
        return covariance.square_().sum() / N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
        (grad_embeddings,) = ctx.saved_tensors
        return (grad_embeddings * grad,)


def covariance_penalty(embeddings: Tensor) -> Tensor:
    """Return the squared off-diagonal covariances between samples of `embeddings` [V, N, D].

    The covariance of two samples is over their channels; the squares are summed over pairs and
    views and divided by N.
    """
    return _CovariancePenalty.apply(embeddings)  # type: ignore[no-any-return]


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
