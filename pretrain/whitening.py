"""Whitening of embeddings over the batch or over the channels, differentiable everywhere.

Legend: N samples, D channels, G groups of D/G channels, B independent whitenings, k variables,
n observations.

Batch whitening (W-MSE, Ermolov et al., arXiv 2007.06346, section 3) makes the D x D covariance
over samples the identity: k = D/G, n = N. Channel whitening (CW-RGP, Weng et al., arXiv
2210.03586, section 4) makes the N x N covariance over channels the identity: k = N, n = D/G.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.inverse_roots import METHODS, inverse_root
from pretrain.loss_config import whitening_faults

AXES = ("batch", "channels")


class _Whiten(torch.autograd.Function):
    """Y = W A for centred A [B, k, n]; derivative as derived in `pretrain.inverse_roots`."""

    @staticmethod
    def forward(ctx: Any, variables: Tensor, method: str, eps: float) -> tuple[Tensor, Tensor]:
        scale = (1.0 - eps) / (variables.shape[-1] - 1)
        covariance = (variables @ variables.mT) * scale
        if eps:
            covariance.diagonal(dim1=-2, dim2=-1).add_(eps)
        root = inverse_root(covariance, method)
        output = root.apply(variables)
        ctx.root, ctx.scale = root, scale
        ctx.save_for_backward(output)
        ctx.mark_non_differentiable(root.num_regularized)
        return output, root.num_regularized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (output,) = ctx.saved_tensors
        symmetric = ctx.root.symmetric_part(grad @ output.mT)
        inner = torch.baddbmm(grad, symmetric, output, alpha=-ctx.scale)
        return ctx.root.apply_transposed(inner), None, None


def whiten_counted(
    x: Tensor,
    *,
    over: str,
    method: str,
    groups: int = 1,
    partition: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return `whiten(x, ...)` and the number of factorisations that needed a ridge (a scalar)."""
    _check(x, over, method, groups, eps)
    *lead, N, D = x.shape
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype == torch.float64 else x.float()
        if partition is not None:
            index = partition[..., None, :].expand(x.shape)
            inverse = partition.argsort(-1)[..., None, :].expand(x.shape)
        centred = x - x.mean(-2 if over == "batch" else -1, keepdim=True)
        if partition is not None:
            centred = centred.gather(-1, index)
        blocks = centred.reshape(-1, N, groups, D // groups)
        order = (0, 2, 3, 1) if over == "batch" else (0, 2, 1, 3)
        variables = blocks.permute(order)
        shape = variables.shape
        output, count = _Whiten.apply(variables.reshape(-1, *shape[-2:]), method, float(eps))
        back = (0, 3, 1, 2) if over == "batch" else (0, 2, 1, 3)
        output = output.reshape(shape).permute(back).reshape(*lead, N, D)
        if partition is not None:
            output = output.gather(-1, inverse)
    return output, count


def whiten(
    x: Tensor,
    *,
    over: str,
    method: str,
    groups: int = 1,
    partition: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Return `x` [..., N, D] whitened; every leading index is a whitening of its own.

    `over="batch"` whitens each group's channels over the samples, `over="channels"` whitens the
    samples over each group's channels, each sample centred over all its channels. Covariances
    divide by the number of observations less one. `eps` shrinks: (1 - eps) S + eps I. Group g
    takes the channels `partition[..., g*D/G : (g+1)*D/G]`; the output keeps the input's channel
    order (PCA puts its components where its group's channels were). Computed in float32, or in
    float64 for float64 input, with autocast off.

    Raises:
        ValueError: for an unknown name, indivisible groups, or a covariance that cannot have
            full rank with eps 0.
    """
    return whiten_counted(x, over=over, method=method, groups=groups, partition=partition, eps=eps)[
        0
    ]


def _check(x: Tensor, over: str, method: str, groups: int, eps: float) -> None:
    if over not in AXES:
        raise ValueError(f"unknown whitening axis {over!r}; known: {', '.join(AXES)}")
    if method not in METHODS:
        raise ValueError(f"unknown whitening method {method!r}; known: {', '.join(METHODS)}")
    if x.dim() < 2:
        raise ValueError(f"whitening wants [..., N, D], got {tuple(x.shape)}")
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    if not 0.0 <= eps <= 1.0:
        raise ValueError(f"eps must be between 0 and 1, got {eps}")
    faults = whitening_faults(over, x.shape[-2], x.shape[-1], groups, eps)
    if faults:
        raise ValueError("; ".join(faults))
