"""Inverse square roots of batches of covariance matrices, and what their derivative needs.

Legend: B matrices in the batch, k variables that are whitened, n observations.

Every exact method finds W with W S Wᵀ = I for a symmetric positive definite S [B, k, k]. With A
the centred variables [B, k, n], S = scale A Aᵀ + const and Y = W A, they share one derivative:

    dL/dA = Wᵀ (dL/dY - scale X Y),    M = (dL/dY) Yᵀ,

where the symmetric X is made from M and is all that differs between the methods. (Write
dY = W dA - C(E) Y with E = W dS Wᵀ; then C(E) + C(E)ᵀ = E, and X / 2 is the adjoint of C at M.)
No eigenvalue gap is divided by, except for PCA, whose axes do turn infinitely fast where two
eigenvalues meet.

A matrix that is singular to working precision gets a ridge relative to its own scale,
`RIDGE * trace / k` (1 for a zero matrix), and is counted. Its neighbours in the batch keep
their exact values. The ridge is a constant for the derivative. A non-finite matrix has W = NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.matmul_roots import inverse_root_by_matmul, lyapunov_by_matmul

RIDGE = 1e-3  # of the mean eigenvalue: well above rounding in float32, whatever k


def times(matrix: Tensor, variables: Tensor) -> Tensor:
    """Return `matrix @ variables` in the memory order of `variables` (rows or columns first)."""
    if variables.mT.is_contiguous():
        return (variables.mT @ matrix.mT).mT
    return matrix @ variables


def add_times_(total: Tensor, matrix: Tensor, variables: Tensor, scale: float) -> Tensor:
    """Add `scale * matrix @ variables`, for a symmetric matrix, to `total` in place; return it."""
    if total.mT.is_contiguous():
        return total.mT.baddbmm_(variables.mT, matrix, alpha=scale).mT
    return total.baddbmm_(matrix, variables, alpha=scale)


class InverseRoot:
    """One factorised batch: how W acts, and how a gradient comes back through it."""

    needs_variables = False
    num_regularized: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return W A for A [B, k, n]."""
        raise NotImplementedError

    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return Wᵀ H for H [B, k, n]."""
        raise NotImplementedError

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X [B, k, k] for M = (dL/dY) Yᵀ."""
        raise NotImplementedError

    def pull_back(
        self, grad: Tensor, output: Tensor, variables: Tensor | None, scale: float
    ) -> Tensor:
        """Return dL/dA for `grad` dL/dY, `output` Y, and A where `needs_variables`.

        May overwrite `grad`.
        """
        del variables
        symmetric = self.symmetric_part(grad @ output.mT)
        return self.apply_transposed(add_times_(grad, symmetric, output, -scale))


def _solve_from_right(matrix: Tensor, right: Tensor, *, upper: bool) -> Tensor:
    """Return X with Xᵀ `matrix` = `right`ᵀ, in the order of `right`; thrice as fast as T X = R."""
    solution: Tensor = torch.linalg.solve_triangular(matrix, right.mT, upper=upper, left=False)
    return solution.contiguous().mT if right.mT.is_contiguous() else solution.mT


@dataclass(frozen=True)
class CholeskyRoot(InverseRoot):
    """W = L⁻¹ with S = L Lᵀ; applied by triangular solves, never inverted."""

    lower: Tensor
    num_regularized: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return L⁻¹ A."""
        return _solve_from_right(self.lower.mT, variables, upper=True)

    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return L⁻ᵀ H."""
        return _solve_from_right(self.lower, grad, upper=False)

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return the symmetric matrix that has the lower triangle of M."""
        lower = torch.ones(product.shape[-2:], dtype=torch.bool, device=product.device).tril_()
        return torch.where(lower, product, product.mT)


@dataclass(frozen=True)
class ZCARoot(InverseRoot):
    """W = U diag(1/s) Uᵀ, the symmetric root, with S = U diag(s²) Uᵀ."""

    vectors: Tensor
    roots: Tensor
    weight: Tensor
    num_regularized: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return W A."""
        return times(self.weight, variables)

    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return W H."""
        return times(self.weight, grad)

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X with W X + X W = W M + Mᵀ W: only sums of roots are divided by."""
        column, row = self.roots[:, None, :], self.roots[:, :, None]
        inner = self.vectors.mT @ product @ self.vectors
        inner = inner.mul_(column / (row + column))
        return self.vectors @ (inner + inner.mT) @ self.vectors.mT


@dataclass(frozen=True)
class PCARoot(InverseRoot):
    """W = diag(1/s) Uᵀ: variables come out as components, largest variance first.

    The sign of a component is arbitrary. Where two eigenvalues agree to working precision their
    components may turn freely within their plane; the derivative then takes the mean, X = (M+Mᵀ)/2.
    """

    vectors: Tensor
    roots: Tensor
    num_regularized: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return diag(1/s) Uᵀ A."""
        return times((self.vectors / self.roots[:, None, :]).mT, variables)

    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return U diag(1/s) H."""
        return times(self.vectors / self.roots[:, None, :], grad)

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X_ij = (λ_j M_ij - λ_i M_ji) / (λ_j - λ_i), X_ii = M_ii."""
        values = self.roots.square()
        column, row = values[:, None, :], values[:, :, None]
        gap, total = column - row, column + row
        distinct = gap.abs() > total * (8 * torch.finfo(values.dtype).eps)
        half_slope = torch.where(distinct, 0.5 * total / torch.where(distinct, gap, 1.0), 0.0)
        return 0.5 * (product + product.mT) + half_slope * (product - product.mT)


@dataclass(frozen=True)
class MatmulRoot(InverseRoot):
    """W = S^(-1/2) by matrix products alone; equal to `ZCARoot` within the checked tolerance."""

    weight: Tensor
    num_regularized: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return W A."""
        return times(self.weight, variables)

    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return W H."""
        return times(self.weight, grad)

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X with W X + X W = W M + Mᵀ W, by matrix products."""
        half = self.weight @ product
        return lyapunov_by_matmul(self.weight, half + half.mT)


@dataclass(frozen=True)
class IterNormRoot(InverseRoot):
    """W = P_T(S / tr S) / sqrt(tr S), T Newton steps (IterNorm, Huang et al., arXiv 1904.03441).

    Stops short of whitening: small eigenvalues are lifted only part of the way.
    """

    covariance: Tensor
    weight: Tensor
    iterations: int
    num_regularized: Tensor
    needs_variables = True

    def apply(self, variables: Tensor) -> Tensor:
        """Return W A."""
        return times(self.weight, variables)

    def pull_back(
        self, grad: Tensor, output: Tensor, variables: Tensor | None, scale: float
    ) -> Tensor:
        """Return dL/dA through the T steps."""
        assert variables is not None
        with torch.enable_grad():
            covariance = self.covariance.detach().requires_grad_()
            weight = _newton_weight(covariance, self.iterations)
        (slope,) = torch.autograd.grad(weight, covariance, grad @ variables.mT)
        return add_times_(self.apply(grad), slope + slope.mT, variables, scale)


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
    lower, info = torch.linalg.cholesky_ex(covariance)
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    pivots = lower.diagonal(dim1=-2, dim2=-1)
    safe = pivots.square() > _tolerance(covariance) * variances
    safe = safe & (info == 0)[:, None]
    if bool(safe.all()):
        return CholeskyRoot(lower, info.new_zeros((), dtype=torch.int64))
    healthy = safe.all(-1)
    finite, broken = _without_non_finite(covariance)
    repaired, _ = torch.linalg.cholesky_ex(_add_ridge(finite, ~healthy))
    lower = torch.where(healthy[:, None, None], lower, repaired)
    return CholeskyRoot(_spoil(lower, broken), (~healthy).sum())


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


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s (ascending) of S = U diag(s²) Uᵀ, and how many members needed a ridge."""
    covariance, broken = _without_non_finite(covariance)
    values, vectors = torch.linalg.eigh(covariance)
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
    return ZCARoot(vectors, roots, weight, num_regularized)


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


def _newton_weight(covariance: Tensor, iterations: int) -> Tensor:
    """Return P_T / sqrt(tr S), with P <- (3 P - P³ N) / 2 and N = S / tr S.

    P N is carried along: equal in exact arithmetic, and does not diverge for large T.
    """
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    root = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    three, root, square = 3.0 * root, root.expand_as(covariance), covariance / trace
    for _ in range(iterations):
        step = torch.baddbmm(three, root, square, beta=0.5, alpha=-0.5)
        square, root = square @ step, step @ root
    return root / trace.sqrt()


def _iter_norm(covariance: Tensor, iterations: int) -> InverseRoot:
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    empty = trace <= torch.finfo(trace.dtype).tiny ** 0.75
    covariance = _add_ridge(covariance, empty)
    weight = _newton_weight(covariance, iterations)
    return IterNormRoot(covariance, weight, iterations, empty.sum())


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
