"""Parts of all losses: their call, the distance between views, whitening of sub-batches.

Legend: V views, N batch, D embedding dimension, n sub-batch, S = N / n sub-batches, T iterations.

Every loss is called as `loss(embeddings [V, N, D], *, generator, **beside)`, computes in float32
(float64 for float64 embeddings) with autocast off, and returns a scalar. What is `beside` the
embeddings its method gives it (a predictor's output, a momentum branch's embeddings); a whitening
loss takes `batch_permutation` and `channel_partition`. Non-finite embeddings give NaN.

Several processes: `embeddings` are this rank's [V, N / world, D]. What depends on the whole batch
(batch whitening, BatchNorm, the covariance term) gathers it with gradients. The convention is
that of DistributedDataParallel: after its mean over ranks the parameters' gradients are those of
one process holding the whole batch. Channel whitening treats each sub-batch apart, so its
sub-batches stay within a rank and nothing is gathered; each rank returns the loss of its part,
whose mean over ranks is the loss of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.config.loss import LossConfig, LossSettings, sub_batch_faults, whitening_faults
from pretrain.runtime.cpu import keep_freed_memory
from pretrain.runtime.device import to_device
from pretrain.runtime.distributed import all_gather_with_grad, broadcast
from pretrain.whitening.functional import (
    ChannelGroups,
    inverse_permutation,
    refuse_no_permutation,
    whiten,
    whiten_grouped,
)
from pretrain.whitening.inverse_sqrt import WhiteningSettings

_SHORTEST = 1e-12  # a shorter vector has no direction: it normalises to zero, with derivative zero


class Loss(nn.Module):
    """A loss on embeddings of several views, with its settings `config`."""

    covariance_weight: float = 0.0  # of CW-RGP's extra term

    def __init__(self, config: LossSettings) -> None:
        super().__init__()
        self.config = config

    def extra_repr(self) -> str:
        """Return the settings."""
        return " ".join(f"{key}={value}" for key, value in self.config.model_dump().items())

    @property
    def regularized_count(self) -> int:
        """Factorisations that needed a ridge so far: none where nothing is factorised."""
        return 0

    @property
    def counts_whole_batch(self) -> bool:
        """Whether every rank counts those of the global batch, not those of its own part."""
        return False

    def whitened(self, embedding: Tensor) -> Tensor | None:
        """Return what the loss makes of one view's `embedding` [N, D], for the indicators; or None.

        Of the global batch; every rank has to call this.
        """
        del embedding
        return None


class WhiteningLoss(Loss):
    """A loss between views that are whitened in sub-batches; a subclass says what of the batch.

    `regularized_count` counts the factorisations that needed a ridge (see
    `pretrain.whitening.inverse_sqrt`); it is part of the state dict.
    `covariance_weight`, of CW-RGP's extra term, is a plain attribute: set it to 0 to end that term
    during training.
    """

    config: LossConfig

    def __init__(self, config: LossConfig) -> None:
        super().__init__(config)
        if config.sub_batch is None or config.over is None or config.method is None:
            raise ValueError(f"loss {config.name!r} whitens nothing; build it with build_loss")
        self.sub_batch = config.sub_batch
        self.covariance_weight = config.covariance_weight
        self._over = config.over
        self._settings = WhiteningSettings(config.method, config.eps, config.newton_iterations)
        self.num_regularized: Tensor
        self.register_buffer("num_regularized", torch.zeros((), dtype=torch.int64))

    @classmethod
    def from_config(cls, config: LossConfig) -> Self:
        """Return the loss of `config`, which has settings beside the constructor's keywords."""
        loss = cls.__new__(cls)
        WhiteningLoss.__init__(loss, config)
        return loss

    @property
    def regularized_count(self) -> int:
        """Factorisations that needed a ridge so far, before a resume too; waits for the device.

        Under batch whitening every rank counts those of the global batch.
        """
        return int(self.num_regularized)

    @property
    def counts_whole_batch(self) -> bool:
        """Whether every rank counts those of the global batch, not those of its own part."""
        return self._over == "batch"

    def whiten_views(
        self,
        x: Tensor,
        generator: torch.Generator | None,
        batch_permutation: Tensor | None,
        channel_partition: Tensor | None,
    ) -> tuple[Tensor, int]:
        """Return views `x` [V, N, D] whitened as [V, T S, n, D], and which dimension is D.

        Each of T rounds shuffles the batch, cuts it into sub-batches (the same images in every
        view) and whitens every sub-batch of every view apart. With a random partition the channels
        are put into groups anew for every round, sub-batch and view. Where channels are moved the
        last two dimensions come transposed, [V, T S, D, n].

        `batch_permutation` [T, N] and `channel_partition` [T, S, V, D] are drawn from `generator`
        unless given (an empty partition means channels in order). Batch whitening draws them on
        rank 0 for all.

        Raises:
            ValueError: if the sizes cannot work.
        """
        if x.device.type == "cpu":
            keep_freed_memory()
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
        return white.view(V, -1, *white.shape[1:]), groups.channel_dim

    @torch.no_grad()
    def whitened(self, embedding: Tensor) -> Tensor:
        """Return `embedding` [N, D] of one view as the loss whitens it; draws and counts nothing.

        Sub-batches and groups take images and channels in order; images that fill no sub-batch
        are left out. Of the images of all processes, which must all call this.

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
        output = output.view(-1, D)
        return all_gather_with_grad(output, 0) if self._over == "channels" else output

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
        return broadcast(drawn, device) if self._over == "batch" else to_device(drawn, device)


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


class _PairwiseMSE(torch.autograd.Function):
    """`pairwise_mse`; its derivative is made in the forward pass, where all it needs is at hand.

    All pairs come from one sum: with a_v the (normalised) views of an image and d_v = a_v - m, m
    their mean, sum_{v<u} |a_v - a_u|² = V sum_v |d_v|², which does not cancel where views are
    close. Its derivative with respect to a_v is 2 V d_v; for a_v = y_v / |y_v| that with respect to
    y_v is 2 V (d_v - (a_v . d_v) a_v) / |y_v|.
    """

    @staticmethod
    def forward(ctx: Any, views: Tensor, normalize: bool, dim: int) -> Tensor:
        V, D = views.shape[0], views.shape[dim]
        num_compared = views[0].numel() // (D if normalize else 1)
        factor = 2.0 / (V * (V - 1) * num_compared)
        if normalize:
            norm = views.square().sum(dim, keepdim=True).sqrt_()
            inverse = torch.where(norm <= _SHORTEST, 0.0, 1.0 / norm)
            views = views * inverse
        apart = views - views.mean(0)
        value = V * factor * apart.square().sum()
        if normalize:
            views *= (views * apart).sum(dim, keepdim=True)
            grad = apart.sub_(views).mul_(inverse.mul_(2.0 * V * factor))
        else:
            grad = apart.mul_(2.0 * V * factor)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_views,) = ctx.saved_tensors
        return grad_views * grad, None, None


def pairwise_mse(views: Tensor, *, normalize: bool, dim: int = -1) -> Tensor:
    """Return the mean squared distance over all pairs of V `views` [V, ...], D in `dim`.

    With `normalize` |a - b|² of L2-normalised vectors, in [0, 4]; else divided by D too.
    """
    return _PairwiseMSE.apply(views, normalize, dim)  # type: ignore[no-any-return]


class _CovariancePenalty(torch.autograd.Function):
    """`covariance_penalty`; its derivative is made in the forward pass, so in full precision."""

    @staticmethod
    def forward(ctx: Any, variables: Tensor) -> Tensor:
        _, k, n = variables.shape
        centred = variables - variables.mean(-1, keepdim=True)
        covariance = centred @ centred.mT / (n - 1)
        covariance.diagonal(dim1=-2, dim2=-1).zero_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((covariance @ centred).mul_(4.0 / (k * (n - 1))))
        return covariance.square_().sum() / k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
        (grad_variables,) = ctx.saved_tensors
        return (grad_variables * grad,)


def covariance_penalty(variables: Tensor) -> Tensor:
    """Return the squared off-diagonal covariances of `variables` [V, k, n] over n observations.

    The squares are summed over pairs of variables and over views, and divided by k.
    """
    return _CovariancePenalty.apply(variables)  # type: ignore[no-any-return]


class _Differentiated(torch.autograd.Function):
    """`differentiated`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        if not ctx.needs_input_grad[0]:
            return function(x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = function(leaf)
            (grad,) = torch.autograd.grad(value, leaf)
        ctx.save_for_backward(grad)
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (grad_x,) = ctx.saved_tensors
        return grad_x * grad, None


def differentiated(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the scalar `function(x)`, whose derivative is made at once, in the forward pass.

    So its matrix products have full precision in both passes, whatever the caller's backward pass
    runs in, and all that it needs on the way is freed before the loss returns. What else `function`
    knows gets no gradient.
    """
    return _Differentiated.apply(x, function)  # type: ignore[no-any-return]


def normalized(x: Tensor) -> Tensor:
    """Return L2-normalised vectors, D in the last dimension; one of length zero stays zero."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm <= _SHORTEST, math.inf)


def standardized(x: Tensor, eps: float) -> Tensor:
    """Return each channel of every view of `x` [V, N, D] with mean 0 and variance 1 over N.

    As BatchNorm without its affine part: biased variances, with `eps` added.
    """
    centred = x - x.mean(1, keepdim=True)
    return centred * (centred.square().mean(1, keepdim=True) + eps).rsqrt()


def refuse(faults: list[str]) -> None:
    """Raise ValueError with all `faults`, if any."""
    if faults:
        raise ValueError("; ".join(faults))


def checked_views(embeddings: Tensor | Sequence[Tensor]) -> Tensor:
    """Return `embeddings` [V, N, D] in the precision of the loss: float32, or float64 as they are.

    Raises:
        ValueError: if they have other dimensions or fewer than two views, or are not one tensor.
    """
    if not isinstance(embeddings, Tensor):
        raise ValueError(
            f"embeddings want one tensor [V, N, D], got {type(embeddings).__name__}: "
            "torch.stack them"
        )
    if embeddings.dim() != 3 or embeddings.shape[0] < 2:
        raise ValueError(
            f"embeddings want [V views, N batch, D] with at least 2 views, "
            f"got {list(embeddings.shape)}"
        )
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


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
