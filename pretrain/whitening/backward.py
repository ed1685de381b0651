"""How W of a factorised batch acts on variables, and how a gradient comes back through it.

Legend: B matrices in the batch, k variables that are whitened, n observations.

Every exact method finds W with W S Wᵀ = I for a symmetric positive definite S [B, k, k]. With A
the centred variables [B, k, n], S = scale A Aᵀ + const and Y = W A, they share one derivative:

    dL/dA = Wᵀ (dL/dY - scale X Y),    M = (dL/dY) Yᵀ,

where the symmetric X is made from M and is all that differs between the methods. (Write
dY = W dA - C(E) Y with E = W dS Wᵀ; then C(E) + C(E)ᵀ = E, and X / 2 is the adjoint of C at M.)
No eigenvalue gap is divided by, except for PCA, whose axes do turn infinitely fast where two
eigenvalues meet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.whitening.newton_schulz import iter_norm_weight, lyapunov_by_matmul
from pretrain.whitening.triangular import Triangle


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


@dataclass(frozen=True)
class CholeskyRoot(InverseRoot):
    """W = L⁻¹ with S = L Lᵀ; applied by triangular solves."""

    factor: Triangle
    num_regularized: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return L⁻¹ A."""
        return self.factor.solve(variables.mT).mT

    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return L⁻ᵀ H."""
        return self.factor.solve_transposed(grad.mT).mT

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return the symmetric matrix that has the lower triangle of M."""
        lower = torch.ones(product.shape[-2:], dtype=torch.bool, device=product.device).tril_()
        return torch.where(lower, product, product.mT)


@dataclass(frozen=True)
class SymmetricRoot(InverseRoot):
    """A root with W = Wᵀ, kept as a matrix."""

    weight: Tensor
    num_regularized: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return W A."""
        return times(self.weight, variables)

    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return W H."""
        return times(self.weight, grad)


@dataclass(frozen=True)
class ZCARoot(SymmetricRoot):
    """W = U diag(1/s) Uᵀ with S = U diag(s²) Uᵀ."""

    vectors: Tensor
    roots: Tensor

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
class MatmulRoot(SymmetricRoot):
    """W = S^(-1/2) by matrix products alone; equal to `ZCARoot` within the checked tolerance."""

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X with W X + X W = W M + Mᵀ W, by matrix products."""
        half = self.weight @ product
        return lyapunov_by_matmul(self.weight, half + half.mT)


@dataclass(frozen=True)
class IterNormRoot(SymmetricRoot):
    """W = P_T(S / tr S) / sqrt(tr S), T Newton steps (IterNorm, Huang et al., arXiv 1904.03441).

    Stops short of whitening: small eigenvalues are lifted only part of the way.
    """

    covariance: Tensor
    iterations: int
    needs_variables = True

    def pull_back(
        self, grad: Tensor, output: Tensor, variables: Tensor | None, scale: float
    ) -> Tensor:
        """Return dL/dA through the T steps."""
        assert variables is not None
        with torch.enable_grad():
            covariance = self.covariance.detach().requires_grad_()
            weight = iter_norm_weight(covariance, self.iterations)
        (slope,) = torch.autograd.grad(weight, covariance, grad @ variables.mT)
        return add_times_(self.apply(grad), slope + slope.mT, variables, scale)
