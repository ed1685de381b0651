"""S^(-1/2) and its derivative by matrix products alone, for devices that have slow eigensolvers.

`inverse_sqrt_by_matmul` and `lyapunov_by_matmul` use the Newton-Schulz iteration
x -> a x (3 - a² x²) / 2 on singular values in [l, 1] with the scaling a(l) that maps the interval
into the shortest one below 1 (Chen and Chow, 2014). The steps follow from the smallest ratio l that
is of interest, so no step waits for the device. `iter_norm_weight` takes a few steps, unscaled.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scaling_schedule(smallest: float, precision: float) -> list[float]:
    """Return the scalings a that bring singular values in [`smallest`, 1] within `precision` of 1.

    With a = sqrt(3 / (1 + l + l²)) both ends of [l, 1] go to the same value, the least of the
    image; the largest value of the image is 1.
    """
    scalings, lowest = [], smallest
    while 1.0 - lowest > precision:
        scaling = (3.0 / (1.0 + lowest + lowest * lowest)) ** 0.5
        scalings.append(scaling)
        lowest = 0.5 * scaling * lowest * (3.0 - (scaling * lowest) ** 2)
    return scalings


def _schedule(dtype: torch.dtype, tolerance: float) -> list[float]:
    return [*scaling_schedule(tolerance**0.5, 0.1 * torch.finfo(dtype).eps ** 0.5), 1.0]


def _spectral_bound(matrix: Tensor, num_squarings: int = 1) -> Tensor:
    """Return an upper bound [B, 1, 1] of the largest eigenvalue of symmetric matrices.

    At most k^(1/4) too large for one squaring s, k^(1/2^(s+1)) for s.
    """
    tiny = torch.finfo(matrix.dtype).tiny
    bound = matrix.abs().amax((-2, -1), keepdim=True).clamp(min=tiny)
    power = matrix / bound
    for number in range(1, num_squarings + 1):
        power = power @ power
        norm = torch.linalg.matrix_norm(power, keepdim=True)
        power, bound = power / norm, bound * norm ** (0.5**number)
    return bound


def inverse_sqrt_by_matmul(covariance: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return S^(-1/2) of `covariance` [B, k, k], and for which matrices it has converged [B].

    Converged: the root mean square of the eigenvalues of W S W - I is within 3 sqrt(eps), which
    a matrix with a smaller eigenvalue than `tolerance` times the bound of its largest one misses.
    """
    bound = _spectral_bound(covariance)
    square = covariance / bound
    root = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    three = 3.0 * root
    root = root.expand_as(covariance)
    for scaling in _schedule(covariance.dtype, tolerance):
        step = torch.baddbmm(three, root, square, beta=0.5 * scaling, alpha=-0.5 * scaling**3)
        square, root = square @ step, step @ root
    root = 0.5 * (root + root.mT) / bound.sqrt()
    residual = root @ covariance @ root
    residual.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    size = covariance.shape[-1]
    error = residual.square().sum((-2, -1)) / size
    return root, error <= 9.0 * torch.finfo(covariance.dtype).eps


def condition_bound(covariance: Tensor, root: Tensor) -> Tensor:
    """Return an upper bound [B] of largest / smallest eigenvalue, at most k^(1/16) too large.

    `root` is S^(-1/2). From `inverse_sqrt_by_matmul` it need not have converged: the smaller an
    eigenvalue of S is, the larger is that of `root`.
    """
    bound = _spectral_bound(covariance, 4) * _spectral_bound(root, 4).square()
    return bound[:, 0, 0]


def lyapunov_by_matmul(matrix: Tensor, right: Tensor) -> Tensor:
    """Return X with P X + X P = Q for `matrix` P positive definite and `right` Q symmetric.

    The iteration acts on [[P, Q], [0, -P]], whose matrix sign is [[I, 2 X], [0, -I]] (Roberts,
    1980).
    """
    bound = _spectral_bound(matrix)
    block, corner = matrix / bound, right / bound
    tolerance = max(8.0, matrix.shape[-1] ** 0.5) * torch.finfo(matrix.dtype).eps
    for scaling in _schedule(matrix.dtype, tolerance):
        square = block @ block
        mixed = block @ corner
        mixed = block @ (mixed - mixed.mT)
        mixed = torch.baddbmm(mixed, corner, square)
        corner = (1.5 * scaling) * corner - (0.5 * scaling**3) * mixed
        block = torch.baddbmm(block, block, square, beta=1.5 * scaling, alpha=-0.5 * scaling**3)
        corner = 0.5 * (corner + corner.mT)
    return 0.5 * corner


def iter_norm_weight(covariance: Tensor, iterations: int) -> Tensor:
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
