"""Inverse square roots of batches of covariance matrices, and what their derivative needs.

Legend: B matrices in the batch, k variables that are whitened, n observations.

Every method finds W with W S Wᵀ = I for a symmetric positive definite S [B, k, k]. With A the
centred variables [B, k, n], S = A Aᵀ / (n - 1) and Y = W A, all of them share one derivative:

    dL/dA = Wᵀ (dL/dY − X Y / (n − 1)),    M = (dL/dY) Yᵀ,

where X is a symmetric matrix made from M; only this step differs between the methods (write
dY = W dA − C Y, where C is linear in the perturbation E = W dS Wᵀ and C + Cᵀ = E; X / 2 is the
adjoint of E -> C). Nothing is divided by a gap between eigenvalues except for PCA, whose axes do
turn infinitely fast where two eigenvalues meet.

A matrix that is singular to working precision gets a ridge relative to its own scale,
`sqrt(eps) * trace / k` (1 for a zero matrix), and is counted. Its neighbours in the batch keep
their exact values. The ridge is a constant for the derivative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class InverseRoot(Protocol):
    """One factorised batch: how W acts, and the X of the derivative."""

    num_regularized: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return W A for `variables` A [B, k, n]."""

    def apply_transposed(self, gradient: Tensor) -> Tensor:
        """Return Wᵀ H for `gradient` H [B, k, n]."""

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X [B, k, k] for `product` M = (dL/dY) Yᵀ."""


@dataclass(frozen=True)
class CholeskyRoot:
    """W = L⁻¹ with S = L Lᵀ; applied by triangular solves, never inverted."""

    lower: Tensor
    num_regularized: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return L⁻¹ A."""
        return torch.linalg.solve_triangular(self.lower, variables, upper=False)

    def apply_transposed(self, gradient: Tensor) -> Tensor:
        """Return L⁻ᵀ H."""
        return torch.linalg.solve_triangular(self.lower.mT, gradient, upper=True)

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return the symmetric matrix that has the lower triangle of M."""
        return product.tril() + product.tril(-1).mT


@dataclass(frozen=True)
class ZCARoot:
    """W = U diag(1/s) Uᵀ, the symmetric root, with S = U diag(s²) Uᵀ."""

    vectors: Tensor
    roots: Tensor
    num_regularized: Tensor

    def _weight(self) -> Tensor:
        return (self.vectors / self.roots[:, None, :]) @ self.vectors.mT

    def apply(self, variables: Tensor) -> Tensor:
        """Return W A."""
        return self._weight() @ variables

    def apply_transposed(self, gradient: Tensor) -> Tensor:
        """Return W H."""
        return self._weight() @ gradient

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X with W X + X W = W M + Mᵀ W: no eigenvalue gaps, only sums of roots."""
        inner = self.vectors.mT @ product @ self.vectors
        share = self.roots[:, None, :] / (self.roots[:, :, None] + self.roots[:, None, :])
        inner = inner * share
        return self.vectors @ (inner + inner.mT) @ self.vectors.mT


@dataclass(frozen=True)
class PCARoot:
    """W = diag(1/s) Uᵀ: variables come out as components, largest variance first.

    The sign of a component is arbitrary. Where two eigenvalues agree to working precision their
    components may turn freely within their plane; the derivative then takes the mean, X = (M+Mᵀ)/2.
    """

    vectors: Tensor
    roots: Tensor
    num_regularized: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return diag(1/s) Uᵀ A."""
        return (self.vectors / self.roots[:, None, :]).mT @ variables

    def apply_transposed(self, gradient: Tensor) -> Tensor:
        """Return U diag(1/s) H."""
        return (self.vectors / self.roots[:, None, :]) @ gradient

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X_ij = (λ_j M_ij − λ_i M_ji) / (λ_j − λ_i), X_ii = M_ii."""
        values = self.roots.square()
        column, row = values[:, None, :], values[:, :, None]
        gap, total = column - row, column + row
        distinct = gap.abs() > total * (8 * torch.finfo(values.dtype).eps)
        half_slope = torch.where(distinct, 0.5 * total / torch.where(distinct, gap, 1.0), 0.0)
        symmetric = 0.5 * (product + product.mT)
        return symmetric + half_slope * (product - product.mT)


def _ridge(covariance: Tensor) -> Tensor:
    """Return the ridge [B] a singular member of `covariance` needs, from its own scale."""
    info = torch.finfo(covariance.dtype)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    return torch.where(scale > info.tiny**0.75, scale * info.eps**0.5, torch.ones_like(scale))


def _tolerance(covariance: Tensor) -> float:
    size = covariance.shape[-1]
    return float(max(8.0, size**0.5) * torch.finfo(covariance.dtype).eps)


def _mask_non_finite(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return `covariance` with non-finite members replaced by I, and which are finite [B]."""
    finite = covariance.sum((-2, -1)).isfinite()
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.where(finite[:, None, None], covariance, eye), finite


def _cholesky(covariance: Tensor) -> CholeskyRoot:
    covariance, finite = _mask_non_finite(covariance)
    lower, info = torch.linalg.cholesky_ex(covariance)
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    pivots = lower.diagonal(dim1=-2, dim2=-1).square()
    healthy = (pivots > _tolerance(covariance) * variances).all(-1) & (info == 0)
    num_regularized = (~healthy).sum()
    if not bool(healthy.all()):
        ridge = torch.where(healthy, torch.zeros_like(_ridge(covariance)), _ridge(covariance))
        repaired, _ = torch.linalg.cholesky_ex(
            covariance + torch.diag_embed(ridge[:, None].expand_as(variances))
        )
        lower = torch.where(healthy[:, None, None], lower, repaired)
    lower = torch.where(finite[:, None, None], lower, torch.nan)
    return CholeskyRoot(lower, num_regularized)


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    covariance, finite = _mask_non_finite(covariance)
    values, vectors = torch.linalg.eigh(covariance)
    healthy = values[:, 0] > _tolerance(covariance) * values[:, -1]
    ridged = values.clamp(min=0) + _ridge(covariance)[:, None]
    values = torch.where(healthy[:, None], values, ridged)
    values = torch.where(finite[:, None], values, torch.nan)
    return vectors, values.sqrt(), (~healthy).sum()


def _zca(covariance: Tensor) -> ZCARoot:
    return ZCARoot(*_eigen(covariance))


def _pca(covariance: Tensor) -> PCARoot:
    vectors, roots, num_regularized = _eigen(covariance)
    return PCARoot(vectors.flip(-1), roots.flip(-1), num_regularized)


_ROOTS = {"cholesky": _cholesky, "zca": _zca, "pca": _pca, "newton": _zca}
METHODS = tuple(sorted(_ROOTS))


def inverse_root(covariance: Tensor, method: str) -> InverseRoot:
    """Return W of `covariance` [B, k, k] by `method`, one of `METHODS`."""
    if method not in _ROOTS:
        raise ValueError(f"unknown whitening method {method!r}; known: {', '.join(METHODS)}")
    return _ROOTS[method](covariance)
