"""Inverse square roots of batches of covariance matrices, by method.

Legend: B matrices in the batch, k variables that are whitened.

Every exact method finds W with W S Wᵀ = I for a symmetric positive definite S [B, k, k]; how W acts
and its derivative are in `pretrain.whitening.backward`.

A matrix that is singular to working precision gets a ridge relative to its scale,
`RIDGE * trace / k` (1 for a zero matrix), and is counted. Its neighbours in the batch keep
their exact values. The ridge is a constant for the derivative. A non-finite matrix has W = NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pretrain.runtime.cpu import on_one_core
from pretrain.whitening.backward import (
    PCA,
    ZCA,
    Cholesky,
    InverseSqrt,
    IterNorm,
    NewtonSchulz,
    WhiteningSettings,
)
from pretrain.whitening.newton_schulz import inverse_sqrt_by_matmul, iter_norm_weight

RIDGE = 1e-3  # of the mean eigenvalue: well above rounding in float32, whatever k


def _tolerance(covariance: Tensor) -> float:
    """Return the least ratio of smallest to largest eigenvalue that is told from rounding."""
    size = float(covariance.shape[-1])
    return max(8.0, math.sqrt(size)) * torch.finfo(covariance.dtype).eps


def _ridge(covariance: Tensor) -> Tensor:
    """Return the ridge [B] that a singular matrix of `covariance` gets, from its scale."""
    info = torch.finfo(covariance.dtype)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    return torch.where(scale > info.tiny**0.75, scale * RIDGE, torch.ones_like(scale))


def _without_non_finite(covariance: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return `covariance` with I for non-finite matrices, and which those are [B] (or None)."""
    if bool(covariance.sum().isfinite()):
        return covariance, None
    broken = ~covariance.isfinite().all(-1).all(-1)
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.where(broken[:, None, None], eye, covariance), broken


def _cholesky(covariance: Tensor) -> Cholesky:
    with on_one_core():
        lower, info = torch.linalg.cholesky_ex(covariance)
        pivots, variances = (m.diagonal(dim1=-2, dim2=-1) for m in (lower, covariance))
        safe = pivots.square() > _tolerance(covariance) * variances
        singular = ~safe.all(-1) | (info != 0)
        count = singular.sum()
        if bool(count):
            finite, broken = _without_non_finite(covariance)
            repaired, _ = torch.linalg.cholesky_ex(_add_ridge(finite, singular))
            lower = _spoil(repaired, broken)
        return Cholesky.of(lower, count)


def _add_ridge(covariance: Tensor, singular: Tensor) -> Tensor:
    ridge = torch.where(singular, _ridge(covariance), torch.zeros_like(covariance[:, 0, 0]))
    covariance = covariance.clone()
    covariance.diagonal(dim1=-2, dim2=-1).add_(ridge[:, None])
    return covariance


def _spoil(tensor: Tensor, broken: Tensor | None) -> Tensor:
    """Return `tensor` [B, ...] with NaN where `broken` [B]."""
    if broken is None:
        return tensor
    return torch.where(broken.reshape(-1, *[1] * (tensor.dim() - 1)), torch.nan, tensor)


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s (ascending) of S = U diag(s²) Uᵀ, and how many matrices needed a ridge."""
    covariance, broken = _without_non_finite(covariance)
    with on_one_core():
        values, vectors = torch.linalg.eigh(covariance)
    singular = values[:, 0] <= _tolerance(covariance) * values[:, -1]
    ridge = torch.where(singular, _ridge(covariance), torch.zeros_like(values[:, 0]))
    values = values.clamp(min=0) + ridge[:, None]
    count = singular.sum() if broken is None else (singular | broken).sum()
    return vectors.contiguous(), _spoil(values.sqrt(), broken), count


def _zca(covariance: Tensor) -> InverseSqrt:
    if covariance.device.type != "cpu":
        return _by_matmul(covariance)
    vectors, roots, num_regularized = _eigen(covariance)
    weight = (vectors / roots[:, None, :]) @ vectors.mT
    return ZCA(num_regularized, weight, vectors, roots)


def _pca(covariance: Tensor) -> PCA:
    vectors, roots, num_regularized = _eigen(covariance)
    vectors, roots = vectors.flip(-1), roots.flip(-1)
    return PCA(num_regularized, (vectors / roots[:, None, :]).mT, roots)


def _by_matmul(covariance: Tensor) -> InverseSqrt:
    """Return ZCA by matrix products; matrices that do not converge are done exactly."""
    weight, converged = inverse_sqrt_by_matmul(covariance, _tolerance(covariance))
    if bool(converged.all()):
        return NewtonSchulz(converged.new_zeros((), dtype=torch.int64), weight)
    hard = (~converged).nonzero().squeeze(-1)
    vectors, roots, num_regularized = _eigen(covariance[hard])
    exact = (vectors / roots[:, None, :]) @ vectors.mT
    return NewtonSchulz(num_regularized, weight.index_copy(0, hard, exact))


def _iter_norm(covariance: Tensor, iterations: int) -> InverseSqrt:
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    empty = trace <= torch.finfo(trace.dtype).tiny ** 0.75
    covariance = _add_ridge(covariance, empty)
    weight = iter_norm_weight(covariance, iterations)
    return IterNorm(empty.sum(), weight, covariance)


_METHODS: dict[str, Callable[[Tensor], InverseSqrt]] = {
    "cholesky": _cholesky,
    "newton": _by_matmul,
    "pca": _pca,
    "zca": _zca,
}
METHODS = tuple(_METHODS)


def inverse_sqrt(covariance: Tensor, settings: WhiteningSettings) -> InverseSqrt:
    """Return W of `covariance` [B, k, k] by `settings.method`, one of `METHODS`.

    `newton` iterates until it has converged, which makes it ZCA, or `newton_iterations` times.
    """
    if settings.newton_iterations is not None:
        return _iter_norm(covariance, settings.newton_iterations)
    return _METHODS[settings.method](covariance)
