"""Triangular solves where matrix products do nearly all of the work.

Legend: B matrices in the batch, k variables, n vectors.

LAPACK's solves with many small triangular matrices run at a third of the speed of a product, on one
core. Cut in halves, L = [[L1, 0], [C, L2]] gives y1 = L1⁻¹ a1 and y2 = L2⁻¹ (a2 - C y1), and so on
down to blocks of at most `BLOCK`: these alone are inverted, the rest is products. Errors stay
within twice those of LAPACK.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pretrain.runtime.cpu import on_one_core

BLOCK = 64  # or half of a smaller L


class Triangle(Protocol):
    """A batch of lower triangular matrices L [B, k, k] that can be solved with."""

    def solve(self, rows: Tensor) -> Tensor:
        """Return L⁻¹ applied to each row of `rows` [B, n, k]."""

    def solve_transposed(self, rows: Tensor) -> Tensor:
        """Return L⁻ᵀ applied to each row of `rows` [B, n, k]."""


@dataclass(frozen=True)
class _Block:
    inverse: Tensor

    def solve(self, rows: Tensor) -> Tensor:
        return torch.bmm(rows, self.inverse.mT)

    def solve_transposed(self, rows: Tensor) -> Tensor:
        return torch.bmm(rows, self.inverse)


@dataclass(frozen=True)
class _Halves:
    first: Triangle
    corner: Tensor
    second: Triangle

    def solve(self, rows: Tensor) -> Tensor:
        width = self.corner.shape[-1]
        first = self.first.solve(rows[..., :width])
        rest = torch.baddbmm(rows[..., width:], first, self.corner.mT, alpha=-1)
        return torch.cat((first, self.second.solve(rest)), -1)

    def solve_transposed(self, rows: Tensor) -> Tensor:
        width = self.corner.shape[-1]
        second = self.second.solve_transposed(rows[..., width:])
        rest = torch.baddbmm(rows[..., :width], second, self.corner, alpha=-1)
        return torch.cat((self.first.solve_transposed(rest), second), -1)


def triangle(lower: Tensor) -> Triangle:
    """Return `lower` [B, k, k] cut for solves."""
    return _cut(lower, min(BLOCK, (lower.shape[-1] + 1) // 2))


def _cut(lower: Tensor, block: int) -> Triangle:
    k = lower.shape[-1]
    if k <= block:
        eye = torch.eye(k, dtype=lower.dtype, device=lower.device)
        with on_one_core():
            return _Block(torch.linalg.solve_triangular(lower, eye, upper=False, left=False))
    half = k // 2
    first, second = _cut(lower[:, :half, :half], block), _cut(lower[:, half:, half:], block)
    return _Halves(first, lower[:, half:, :half], second)
