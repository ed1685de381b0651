"""Inverse square roots of batches of covariance matrices, by method.

Legend: B matrices in the batch, k variables that are whitened.

Every exact method finds W with W S Wᵀ = I for a symmetric positive definite S [B, k, k]; how W acts
and its derivative are in `pretrain.whitening.backward`.

A matrix that is singular to working precision gets a ridge relative to its own scale,
`RIDGE * trace / k` (1 for a zero matrix), and is counted. Its neighbours in the batch keep
their exact values. The ridge is a constant for the derivative. A non-finite matrix has W = NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pretrain.runtime.cpu import in_parts, on_one_core
from pretrain.whitening.backward import (
    CholeskyRoot,
    InverseRoot,
    IterNormRoot,
    MatmulRoot,
    PCARoot,
    ZCARoot,
)
from pretrain.whitening.newton_schulz import inverse_root_by_matmul, iter_norm_weight
from pretrain.whitening.triangular import triangle

RIDGE = 1e-3  # of the mean eigenvalue: well above rounding in float32, whatever k


def _tolerance(covariance: Tensor) -> float:
    """Return the least ratio of smallest to largest eigenvalue that is told from rounding."""
    size = float(covariance.shape[-1])
    return max(8.0, math.sqrt(size)) * torch.finfo(covariance.dtype).eps


def _ridge(covariance: Tensor) -> Tensor:
    """Return the ridge [B] that a singular member of `covariance` gets, from its own scale."""
    info = torch.finfo(covariance.dtype)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    return torch.where(scale > info.tiny**0.75, scale * RIDGE, torch.ones_like(scale))


def _without_non_finite(covariance: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return `covariance` with I for non-finite members, and which are non-finite [B] (or None)."""
    if bool(covariance.sum().isfinite()):
        return covariance, None
    broken = ~covariance.isfinite().all(-1).all(-1)
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.where(broken[:, None, None], eye, covariance), broken


def _cholesky(covariance: Tensor) -> CholeskyRoot:
    with on_one_core():
        lower, info = torch.linalg.cholesky_ex(covariance)
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    pivots = lower.diagonal(dim1=-2, dim2=-1)
    safe = pivots.square() > _tolerance(covariance) * variances
    singular = ~safe.all(-1) | (info != 0)
    count = singular.sum()
    if bool(count):
        finite, broken = _without_non_finite(covariance)
        repaired, _ = torch.linalg.cholesky_ex(_add_ridge(finite, singular))
        lower = _spoil(repaired, broken)
    return CholeskyRoot(triangle(lower), count)


def _add_ridge(covariance: Tensor, singular: Tensor) -> Tensor:
    ridge = torch.where(singular, _ridge(covariance), torch.zeros_like(covariance[:, 0, 0]))
    covariance = covariance.clone()
    covariance.diagonal(dim1=-2, dim2=-1).add_(ridge[:, None])
    return covariance


def _spoil(tensor: Tensor, broken: Tensor | None) -> Tensor:
    """Return `tensor` [B, ...] with NaN in its broken members."""
    if broken is None:
        return tensor
    return torch.where(broken.reshape(-1, *[1] * (tensor.dim() - 1)), torch.nan, tensor)


def _eigh(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (ascending) and vectors, part of the batch on each core of a CPU."""
    values, vectors = zip(*in_parts(torch.linalg.eigh, covariance), strict=True)
    return torch.cat(values), torch.cat(vectors)


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s (ascending) of S = U diag(s²) Uᵀ, and how many members needed a ridge."""
    covariance, broken = _without_non_finite(covariance)
    values, vectors = _eigh(covariance)
    singular = values[:, 0] <= _tolerance(covariance) * values[:, -1]
    ridge = torch.where(singular, _ridge(covariance), torch.zeros_like(values[:, 0]))
    values = values.clamp(min=0) + ridge[:, None]
    count = singular.sum() if broken is None else (singular | broken).sum()
    return vectors, _spoil(values.sqrt(), broken), count


def _zca(covariance: Tensor) -> InverseRoot:
    if covariance.device.type != "cpu":
        return _by_matmul(covariance)
    vectors, roots, num_regularized = _eigen(covariance)
    weight = (vectors / roots[:, None, :]) @ vectors.mT
    return ZCARoot(weight, num_regularized, vectors, roots)


def _pca(covariance: Tensor) -> PCARoot:
    vectors, roots, num_regularized = _eigen(covariance)
    return PCARoot(vectors.flip(-1), roots.flip(-1), num_regularized)


def _by_matmul(covariance: Tensor) -> InverseRoot:
    """Return ZCA by matrix products; members that do not converge are done exactly."""
    weight, converged = inverse_root_by_matmul(covariance, _tolerance(covariance))
    if bool(converged.all()):
        return MatmulRoot(weight, converged.new_zeros((), dtype=torch.int64))
    hard = (~converged).nonzero().squeeze(-1)
    vectors, roots, num_regularized = _eigen(covariance[hard])
    exact = (vectors / roots[:, None, :]) @ vectors.mT
    return MatmulRoot(weight.index_copy(0, hard, exact), num_regularized)


def _iter_norm(covariance: Tensor, iterations: int) -> InverseRoot:
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    empty = trace <= torch.finfo(trace.dtype).tiny ** 0.75
    covariance = _add_ridge(covariance, empty)
    weight = iter_norm_weight(covariance, iterations)
    return IterNormRoot(weight, empty.sum(), covariance, iterations)


_ROOTS: dict[str, Callable[[Tensor], InverseRoot]] = {
    "cholesky": _cholesky,
    "newton": _by_matmul,
    "pca": _pca,
    "zca": _zca,
}
METHODS = tuple(_ROOTS)


def inverse_root(
    covariance: Tensor, method: str, newton_iterations: int | None = None
) -> InverseRoot:
    """Return W of `covariance` [B, k, k] by `method`, one of `METHODS`.

    `newton` iterates until it has converged, which makes it ZCA, or `newton_iterations` times.
    """
    if newton_iterations is not None:
        return _iter_norm(covariance, newton_iterations)
    return _ROOTS[method](covariance)
