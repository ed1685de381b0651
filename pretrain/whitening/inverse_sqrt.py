"""W, the inverse square root of a batch of covariances, by method, and the gradient through it.

Legend: B matrices in the batch, k variables that are whitened, n observations.

Every exact method finds W with W S Wᵀ = I for a symmetric positive definite S [B, k, k]. A matrix
that is singular to working precision gets a ridge relative to its scale, `RIDGE * trace / k` (1 for
a zero matrix), and is counted. Its neighbours in the batch keep their exact values. The ridge is a
constant for the derivative. A GPU, whose ZCA is by matrix products, estimates what is singular, to
a factor of 1.5 at most. A non-finite matrix has W = NaN.

With A the centred variables [B, k, n], S = scale A Aᵀ + const and Y = W A, the exact methods share
one derivative:

    dL/dA = Wᵀ (dL/dY - scale X Y),    M = (dL/dY) Yᵀ,

where the symmetric X is made from M and is all that differs between the methods. (Write
dY = W dA - C(E) Y with E = W dS Wᵀ; then C(E) + C(E)ᵀ = E, and X / 2 is the adjoint of C at M.)
No eigenvalue gap is divided by, except for PCA, whose axes do rotate infinitely fast where two
eigenvalues meet.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pretrain.runtime.cpu import on_one_core
from pretrain.whitening.newton_schulz import (
    condition_bound,
    inverse_sqrt_by_matmul,
    iter_norm_weight,
    lyapunov_by_matmul,
)

LARGEST_EIGH_OF_CUDA = 32  # of batches; larger ones one by one (docs/performance.md has more)
RIDGE = 1e-3  # of the mean eigenvalue: well above rounding in float32, whatever k


@dataclass(frozen=True)
class WhiteningSettings:
    """By which W: `method`, shrinkage `eps`, and IterNorm's number of steps, if fixed."""

    method: str
    eps: float = 0.0
    newton_iterations: int | None = None

    def scale(self, num_observations: int) -> float:
        """Return the factor of A Aᵀ in S = (1 - eps) A Aᵀ / (n - 1) + eps I."""
        return (1.0 - self.eps) / (num_observations - 1)


@dataclass(frozen=True)
class InverseSqrt(ABC):
    """W of a batch of covariances: how it acts, and how a gradient comes back through it.

    The fields are tensors, so that autograd can keep them for the backward pass.
    """

    needs_variables: ClassVar[bool] = False

    num_regularized: Tensor

    @abstractmethod
    def apply(self, variables: Tensor) -> Tensor:
        """Return W A for A [B, k, n]."""

    @abstractmethod
    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return Wᵀ H for H [B, k, n]."""

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X [B, k, k] for M = (dL/dY) Yᵀ; only an own `backward` does without."""
        raise NotImplementedError

    def backward(
        self, grad: Tensor, output: Tensor, variables: Tensor | None, settings: WhiteningSettings
    ) -> Tensor:
        """Return dL/dA for `grad` dL/dY, `output` Y, and A where `needs_variables`."""
        del variables
        symmetric = self.symmetric_part(grad @ output.mT)
        scale = settings.scale(output.shape[-1])
        return self.apply_transposed(_add_times(grad, symmetric, output, -scale))


@dataclass(frozen=True)
class Cholesky(InverseSqrt):
    """W = L⁻¹ with S = L Lᵀ, where L = [[L1, 0], [C, L2]] is cut in halves.

    y1 = L1⁻¹ a1 and y2 = L2⁻¹ (a2 - C y1): only the halves are inverted, the rest is products. A
    triangular solve of LAPACK with many vectors takes three times as long on one core; errors stay
    within twice its.
    """

    inverse1: Tensor
    corner: Tensor
    inverse2: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> Cholesky:
        """Return L⁻¹ of `covariance` [B, k, k]; singular to working precision if a pivot is."""
        with on_one_core():
            lower, info = torch.linalg.cholesky_ex(covariance)
            pivots, variances = (m.diagonal(dim1=-2, dim2=-1) for m in (lower, covariance))
            safe = pivots.square() > _tolerance(covariance) * variances
            singular = ~safe.all(-1) | (info != 0)
            count = singular.sum()
            if _any(singular):
                finite, broken = _without_non_finite(covariance)
                repaired, _ = torch.linalg.cholesky_ex(_add_ridge(finite, singular))
                lower = _spoil(repaired, broken)
            return cls.of_factor(lower, count)

    @classmethod
    def of_factor(cls, lower: Tensor, num_regularized: Tensor) -> Cholesky:
        """Return L⁻¹ of L `lower` [B, k, k]."""
        half = lower.shape[-1] // 2
        inverses = []
        for block in (lower[:, :half, :half], lower[:, half:, half:]):
            eye = torch.eye(block.shape[-1], dtype=lower.dtype, device=lower.device)
            inverses.append(torch.linalg.solve_triangular(block, eye, upper=False, left=False))
        return cls(num_regularized, inverses[0], lower[:, half:, :half], inverses[1])

    def apply(self, variables: Tensor) -> Tensor:
        """Return L⁻¹ A."""
        rows, width = variables.mT, self.corner.shape[-1]
        first = rows[..., :width] @ self.inverse1.mT
        rest = torch.baddbmm(rows[..., width:], first, self.corner.mT, alpha=-1)
        return torch.cat((first, rest @ self.inverse2.mT), -1).mT

    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return L⁻ᵀ H."""
        rows, width = grad.mT, self.corner.shape[-1]
        second = rows[..., width:] @ self.inverse2
        rest = torch.baddbmm(rows[..., :width], second, self.corner, alpha=-1)
        return torch.cat((rest @ self.inverse1, second), -1).mT

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return the symmetric matrix that has the lower triangle of M."""
        lower = torch.ones(product.shape[-2:], dtype=torch.bool, device=product.device).tril_()
        return torch.where(lower, product, product.mT)


@dataclass(frozen=True)
class PCA(InverseSqrt):
    """W = diag(1/s) Uᵀ: variables come out as components, largest variance first.

    The sign of a component is arbitrary. Where two eigenvalues agree to working precision their
    components may rotate freely within their plane; the derivative then takes the mean,
    X = (M+Mᵀ)/2.
    """

    weight: Tensor
    roots: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> PCA:
        """Return diag(1/s) Uᵀ of `covariance` [B, k, k]."""
        vectors, roots, num_regularized = _eigen(covariance)
        vectors, roots = vectors.flip(-1), roots.flip(-1)
        return cls(num_regularized, (vectors / roots[:, None, :]).mT, roots)

    def apply(self, variables: Tensor) -> Tensor:
        """Return diag(1/s) Uᵀ A."""
        return _times(self.weight, variables)

    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return U diag(1/s) H."""
        return _times(self.weight.mT, grad)

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X_ij = (λ_j M_ij - λ_i M_ji) / (λ_j - λ_i), X_ii = M_ii."""
        values = self.roots.square()
        column, row = values[:, None, :], values[:, :, None]
        gap, total = column - row, column + row
        distinct = gap.abs() > total * (8 * torch.finfo(values.dtype).eps)
        half_ratio = torch.where(distinct, 0.5 * total / torch.where(distinct, gap, 1.0), 0.0)
        return 0.5 * (product + product.mT) + half_ratio * (product - product.mT)


@dataclass(frozen=True)
class Symmetric(InverseSqrt):
    """W = Wᵀ, kept as a matrix."""

    weight: Tensor

    def apply(self, variables: Tensor) -> Tensor:
        """Return W A."""
        return _times(self.weight, variables)

    def apply_transposed(self, grad: Tensor) -> Tensor:
        """Return W H."""
        return _times(self.weight, grad)


@dataclass(frozen=True)
class ZCA(Symmetric):
    """W = U diag(1/s) Uᵀ with S = U diag(s²) Uᵀ."""

    vectors: Tensor
    roots: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> ZCA:
        """Return S^(-1/2) of `covariance` [B, k, k] by its eigenvalues."""
        vectors, roots, num_regularized = _eigen(covariance)
        return cls(num_regularized, (vectors / roots[:, None, :]) @ vectors.mT, vectors, roots)

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X with W X + X W = W M + Mᵀ W: only sums of roots are divided by."""
        column, row = self.roots[:, None, :], self.roots[:, :, None]
        inner = self.vectors.mT @ product @ self.vectors
        inner = inner.mul_(column / (row + column))
        return self.vectors @ (inner + inner.mT) @ self.vectors.mT


@dataclass(frozen=True)
class NewtonSchulz(Symmetric):
    """W = S^(-1/2) by matrix products alone; equal to `ZCA` within the checked tolerance."""

    @classmethod
    def of(cls, covariance: Tensor) -> NewtonSchulz:
        """Return S^(-1/2) of `covariance` [B, k, k]; what does not converge is done exactly."""
        weight, converged = inverse_sqrt_by_matmul(covariance, _tolerance(covariance))
        if bool(converged.all()):
            return cls(converged.new_zeros((), dtype=torch.int64), weight)
        hard = (~converged).nonzero().squeeze(-1)
        exact = ZCA.of(covariance[hard])
        return cls(exact.num_regularized, weight.index_copy(0, hard, exact.weight))

    @classmethod
    def of_unread(cls, covariance: Tensor) -> NewtonSchulz:
        """Return S^(-1/2) of `covariance` [B, k, k], of which no value is read: a GPU's way."""
        finite, broken = _without_non_finite(covariance)
        tolerance, size = _tolerance(covariance), covariance.shape[-1]
        weight, _ = inverse_sqrt_by_matmul(finite, tolerance / size**0.25)
        singular = ~(condition_bound(finite, weight) * tolerance < 1.0)
        repaired, _ = inverse_sqrt_by_matmul(_add_ridge(finite, singular), tolerance)
        weight = torch.where(singular[:, None, None], repaired, weight)
        count = singular.sum() if broken is None else (singular | broken).sum()
        return cls(count, _spoil(weight, broken))

    def symmetric_part(self, product: Tensor) -> Tensor:
        """Return X with W X + X W = W M + Mᵀ W, by matrix products."""
        half = self.weight @ product
        return lyapunov_by_matmul(self.weight, half + half.mT)


@dataclass(frozen=True)
class IterNorm(Symmetric):
    """W = P_T(S / tr S) / sqrt(tr S), T Newton steps (IterNorm, Huang et al., arXiv 1904.03441).

    Stops short of whitening: small eigenvalues are lifted only part of the way.
    """

    covariance: Tensor
    needs_variables = True

    @classmethod
    def of(cls, covariance: Tensor, iterations: int) -> IterNorm:
        """Return P_T of `covariance` [B, k, k]; only a zero matrix needs a ridge."""
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        empty = trace <= torch.finfo(trace.dtype).tiny ** 0.75
        covariance = _add_ridge(covariance, empty)
        return cls(empty.sum(), iter_norm_weight(covariance, iterations), covariance)

    def backward(
        self, grad: Tensor, output: Tensor, variables: Tensor | None, settings: WhiteningSettings
    ) -> Tensor:
        """Return dL/dA through the T steps."""
        assert variables is not None and settings.newton_iterations is not None
        with torch.enable_grad():
            covariance = self.covariance.detach().requires_grad_()
            weight = iter_norm_weight(covariance, settings.newton_iterations)
        (grad_covariance,) = torch.autograd.grad(weight, covariance, grad @ variables.mT)
        symmetric, scale = grad_covariance + grad_covariance.mT, settings.scale(output.shape[-1])
        return _add_times(self.apply(grad), symmetric, variables, scale)


_METHODS: dict[str, Callable[[Tensor], InverseSqrt]] = {
    "cholesky": Cholesky.of,
    "newton": NewtonSchulz.of,
    "pca": PCA.of,
    "zca": ZCA.of,
}
METHODS = tuple(_METHODS)


def inverse_sqrt(covariance: Tensor, settings: WhiteningSettings) -> InverseSqrt:
    """Return W of `covariance` [B, k, k] by `settings.method`, one of `METHODS`.

    `newton` iterates until it has converged, which makes it ZCA, or `newton_iterations` times. ZCA
    is done by matrix products where eigensolvers are slow, on every device but a CPU.
    """
    if settings.newton_iterations is not None:
        return IterNorm.of(covariance, settings.newton_iterations)
    if settings.method in ("newton", "zca") and covariance.device.type != "cpu":
        return NewtonSchulz.of_unread(covariance)
    return _METHODS[settings.method](covariance)


def _times(matrix: Tensor, variables: Tensor) -> Tensor:
    """Return `matrix @ variables` in the memory order of `variables` (rows or columns first)."""
    if variables.mT.is_contiguous():
        return (variables.mT @ matrix.mT).mT
    return matrix @ variables


def _add_times(total: Tensor, matrix: Tensor, variables: Tensor, scale: float) -> Tensor:
    """Return `total + scale * matrix @ variables` for a symmetric matrix, in total's order."""
    if total.mT.is_contiguous():
        return torch.baddbmm(total.mT, variables.mT, matrix, alpha=scale).mT
    return torch.baddbmm(total, matrix, variables, alpha=scale)


def _tolerance(covariance: Tensor) -> float:
    """Return the least ratio of smallest to largest eigenvalue that is told from rounding."""
    size = float(covariance.shape[-1])
    return max(8.0, math.sqrt(size)) * torch.finfo(covariance.dtype).eps


def _ridge(covariance: Tensor) -> Tensor:
    """Return the ridge [B] that a singular matrix of `covariance` gets, from its scale."""
    info = torch.finfo(covariance.dtype)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    return torch.where(scale > info.tiny**0.75, scale * RIDGE, torch.ones_like(scale))


def _any(flags: Tensor) -> bool:
    """Return whether any of `flags` is set; on a GPU always True, since asking would wait for it.

    What is then done to the others leaves them as they are.
    """
    return flags.device.type != "cpu" or bool(flags.any())


def _without_non_finite(covariance: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return `covariance` with I for non-finite matrices, and which those are [B] (or None)."""
    if not _any(~covariance.sum().isfinite()):
        return covariance, None
    broken = ~covariance.isfinite().all(-1).all(-1)
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.where(broken[:, None, None], eye, covariance), broken


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
    by_cpu = covariance.device.type == "cuda" and covariance.shape[-1] > LARGEST_EIGH_OF_CUDA
    with on_one_core():
        values, vectors = torch.linalg.eigh(covariance.cpu() if by_cpu else covariance)
    values, vectors = values.to(covariance.device), vectors.to(covariance.device)
    singular = values[:, 0] <= _tolerance(covariance) * values[:, -1]
    ridge = torch.where(singular, _ridge(covariance), torch.zeros_like(values[:, 0]))
    values = values.clamp(min=0) + ridge[:, None]
    count = singular.sum() if broken is None else (singular | broken).sum()
    return vectors.contiguous(), _spoil(values.sqrt(), broken), count
