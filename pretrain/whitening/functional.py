"""Whitening of embeddings over the batch or over the channels, differentiable everywhere.

Legend: M batch of whitenings, N samples, D channels, G groups of w = D/G channels, B = M G
matrices, k variables, n observations.

Batch whitening (W-MSE, Ermolov et al., arXiv 2007.06346, section 3) makes the D x D covariance
over samples the identity: k = w, n = N. Channel whitening (CW-RGP, Weng et al., arXiv 2210.03586,
section 4) makes the N x N covariance over channels the identity: k = N, n = w.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.config.loss import whitening_faults
from pretrain.whitening.inverse_sqrt import METHODS, WhiteningSettings, inverse_sqrt

AXES = ("batch", "channels")


@dataclass(frozen=True)
class ChannelGroups:
    """How samples [M, N, D] become variables [M G, k, n], and back.

    With groups or an `order` the samples are transposed to [M, D, N], so that channels are moved as
    whole rows. `order` [M, D] lists the channels group by group; None leaves them as they are.
    """

    over: str
    num_groups: int
    order: Tensor | None = None

    @property
    def transposes(self) -> bool:
        """Whether samples are transposed to [M, D, N]."""
        return self.num_groups > 1 or self.order is not None

    @property
    def channel_dim(self) -> int:
        """Return the dimension of the channels after `transpose`."""
        return -2 if self.transposes else -1

    def transpose(self, x: Tensor) -> Tensor:
        """Return samples [M, N, D] as [M, D, N] in new memory if they are transposed, or back."""
        if not self.transposes:
            return x
        if x.device.type != "cpu":
            return x.mT.clone(memory_format=torch.contiguous_format)
        return torch.stack([matrix.t().contiguous() for matrix in x])  # by blocks: twice as fast

    def centred(self, x: Tensor) -> Tensor:
        """Return transposed samples less their mean over samples or over all channels."""
        return x - x.mean(-1 if self._variables_by_rows else -2, keepdim=True)

    @property
    def _variables_by_rows(self) -> bool:
        """Whether rows of transposed samples are variables, and columns observations."""
        return (self.over == "batch") == self.transposes

    def to_variables(self, x: Tensor) -> Tensor:
        """Return the variables [M G, k, n] of transposed samples, a view unless permuted."""
        if self.order is not None:
            x = _permute_rows(x, self.order)
        if self.transposes:
            _, D, N = x.shape
            x = x.reshape(-1, D // self.num_groups, N)
        return x if self._variables_by_rows else x.mT

    def from_variables(self, variables: Tensor) -> Tensor:
        """Return the transposed samples with channels in order: the inverse of `to_variables`."""
        x = variables if self._variables_by_rows else variables.mT
        if self.transposes:
            width, N = x.shape[-2:]
            x = x.reshape(-1, self.num_groups * width, N)
        if self.order is None:
            return x.contiguous()
        return _permute_rows(x, inverse_permutation(self.order))


def _permute_rows(x: Tensor, order: Tensor) -> Tensor:
    """Return the rows of each `x` [M, D, N] in `order` [M, D]."""
    M, D, N = x.shape
    rows = order + D * torch.arange(M, device=order.device)[:, None]
    return x.reshape(-1, N).index_select(0, rows.flatten()).view(M, D, N)


class _Whiten(torch.autograd.Function):
    """Whitened samples [M, N, D], transposed as `groups` has them, and the number of ridges."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: ChannelGroups, settings: WhiteningSettings
    ) -> tuple[Tensor, Tensor]:
        variables = groups.to_variables(groups.centred(groups.transpose(x)))
        covariance = variables @ variables.mT
        covariance *= settings.scale(variables.shape[-1])
        if settings.eps:
            covariance.diagonal(dim1=-2, dim2=-1).add_(settings.eps)
        W = inverse_sqrt(covariance, settings)
        output = W.apply(variables)
        ctx.groups, ctx.settings, ctx.inverse_sqrt = replace(groups, order=None), settings, type(W)
        kept = variables if W.needs_variables else None
        ctx.save_for_backward(groups.order, output, kept, *vars(W).values())
        ctx.mark_non_differentiable(W.num_regularized)
        return groups.from_variables(output), W.num_regularized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        order, output, variables, *factors = ctx.saved_tensors
        groups, W = replace(ctx.groups, order=order), ctx.inverse_sqrt(*factors)
        with full_precision(grad.device):
            grad = W.backward(groups.to_variables(grad), output, variables, ctx.settings)
            return groups.transpose(groups.centred(groups.from_variables(grad))), None, None


def whiten_grouped(
    x: Tensor, groups: ChannelGroups, settings: WhiteningSettings
) -> tuple[Tensor, Tensor]:
    """Return whitened `x` [M, N, D], and how many covariances needed a ridge.

    Channels are in `groups.channel_dim` of the result, which is not to be changed in place.
    """
    return _Whiten.apply(x, groups, settings)  # type: ignore[no-any-return]


def whiten(  # noqa: PLR0913 - the settings of one formula
    x: Tensor,
    *,
    over: str,
    method: str,
    groups: int = 1,
    partition: Tensor | None = None,
    eps: float = 0.0,
    newton_iterations: int | None = None,
) -> Tensor:
    """Return `x` whitened; every leading index is a whitening of its own.

    `over="batch"` makes the covariance between each group's channels over the samples I (W-MSE,
    Ermolov et al., arXiv 2007.06346, section 3); `over="channels"` that between the samples over
    each group's channels (CW-RGP, Weng et al., arXiv 2210.03586, section 4), each sample centred
    over all its channels. Covariances divide by the number of observations less one.

    Singular covariances get a ridge (see `pretrain.whitening.inverse_sqrt`). Computed in
    float32, or in float64 for float64 input, whatever autocast says. Differentiable once.

    Args:
        x: embeddings [..., N samples, D channels].
        over: batch or channels.
        method: cholesky, zca, pca, or newton, which iterates to convergence and so is `zca`, or
            just `newton_iterations` times, as IterNorm does.
        groups: number G of groups of channels, at least 1; divides D.
        partition: permutation of the channels [D] or [..., D]; group g takes the channels
            `partition[..., g*D/G : (g+1)*D/G]`. In order unless given.
        eps: shrinkage of the covariance S, in [0, 1]: (1 - eps) S + eps I.
        newton_iterations: steps T of method newton, at least 1.

    Returns:
        The whitened [..., N, D] in the input's channel order (PCA over the batch puts its
        components where its group's channels were).

    Raises:
        ValueError: for an unknown name, an argument out of range, a partition that does not fit,
            indivisible groups, too few samples for batch whitening with eps 0, or
            `newton_iterations` with another method.

    Example:
        >>> x = torch.randn(100, 3, dtype=torch.float64) @ torch.randn(3, 3).double() + 5.0
        >>> y = whiten(x, over="batch", method="zca")
        >>> torch.allclose(y.T @ y / (100 - 1), torch.eye(3).double(), atol=1e-6)
        True
    """
    _check(x, over, method, groups, eps, newton_iterations)
    *lead, N, D = x.shape
    if partition is not None:
        partition = _checked_partition(partition, x).reshape(-1, D)
    channel_groups = ChannelGroups(over, groups, partition)
    with full_precision(x.device):
        flat = (x if x.dtype == torch.float64 else x.float()).reshape(-1, N, D)
        settings = WhiteningSettings(method, eps, newton_iterations)
        output, _ = whiten_grouped(flat, channel_groups, settings)
        output = channel_groups.transpose(output) if channel_groups.transposes else output.clone()
    return output.view(*lead, N, D)


def _check(
    x: Tensor, over: str, method: str, groups: int, eps: float, newton_iterations: int | None
) -> None:
    if over not in AXES:
        raise ValueError(f"unknown whitening axis {over!r}; known: {', '.join(AXES)}")
    if method not in METHODS:
        raise ValueError(f"unknown whitening method {method!r}; known: {', '.join(METHODS)}")
    if x.dim() < 2:
        raise ValueError(f"whitening wants [..., N, D], got {list(x.shape)}")
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    if not 0.0 <= eps <= 1.0:
        raise ValueError(f"eps must be between 0 and 1, got {eps}")
    if newton_iterations is not None and (method != "newton" or newton_iterations < 1):
        raise ValueError(
            f"newton_iterations must be at least 1 and belongs to method 'newton', "
            f"got {newton_iterations} with method {method!r}"
        )
    faults = whitening_faults(over, x.shape[-2], x.shape[-1], groups, eps)
    if faults:
        raise ValueError("; ".join(faults))


def _checked_partition(partition: Tensor, x: Tensor) -> Tensor:
    *lead, _, D = x.shape
    try:
        partition = partition.to(x.device, torch.int64).expand(*lead, D)
    except RuntimeError:
        raise ValueError(
            f"partition {list(partition.shape)} does not fit x {list(x.shape)}; "
            f"want [{D}] or {[*lead, D]}"
        ) from None
    refuse_no_permutation("partition", partition)
    return partition


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep matrix products in the precision of their inputs: no autocast, no TF32, no bf16.

    Afterwards the setting is what it was; one that only repeats the general setting
    (`torch.backends.fp32_precision`) goes on following it.
    """
    mkldnn: Any = torch.backends.mkldnn
    if not hasattr(mkldnn, "matmul"):  # before torch 2.9 one switch is for all devices
        general = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.autocast(device.type, enabled=False):
                yield
        finally:
            torch.set_float32_matmul_precision(general)
        return
    backend = torch.backends.cuda.matmul if device.type == "cuda" else mkldnn.matmul
    allowed = backend.fp32_precision
    if allowed not in ("ieee", "none"):
        backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if allowed not in ("ieee", "none"):
            backend.fp32_precision = "none"
            if backend.fp32_precision != allowed:
                backend.fp32_precision = allowed


def refuse_no_permutation(name: str, indices: Tensor) -> None:
    """Raise ValueError unless each last dimension of int64 `indices` [..., D] is a permutation."""
    size = indices.shape[-1]
    in_order = torch.arange(size, device=indices.device).expand_as(indices)
    if not torch.equal(indices.sort(-1).values, in_order):
        raise ValueError(f"{name} is not a permutation of 0..{size - 1} along its last dimension")


def inverse_permutation(permutation: Tensor) -> Tensor:
    """Return q with q[p[i]] = i for each `permutation` p [..., D]."""
    positions = torch.arange(permutation.shape[-1], device=permutation.device)
    return torch.empty_like(permutation).scatter_(-1, permutation, positions.expand_as(permutation))
