"""Whitening of embeddings over the batch or over the channels, differentiable everywhere.

Legend: N samples, D channels, G groups of w = D/G channels, B independent whitenings, k variables,
n observations.

Batch whitening (W-MSE, Ermolov et al., arXiv 2007.06346, section 3) makes the D x D covariance
over samples the identity: k = w, n = N. Channel whitening (CW-RGP, Weng et al., arXiv 2210.03586,
section 4) makes the N x N covariance over channels the identity: k = N, n = w.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.cpu import in_parts, join, num_parts
from pretrain.inverse_roots import METHODS, InverseRoot, inverse_root
from pretrain.loss_config import whitening_faults

AXES = ("batch", "channels")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep matrix products in the precision of their inputs: no autocast, no TF32, no bf16.

    Afterwards the setting is what it was; one that only repeats the general setting
    (`torch.backends.fp32_precision`) goes on following it.
    """
    backend: Any = torch.backends.mkldnn
    backend = torch.backends.cuda.matmul if device.type == "cuda" else backend.matmul
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


@dataclass(frozen=True)
class Arrangement:
    """How samples [M, N, D] become variables [M*G, k, n], and back; a reordering of entries.

    `order` [M, D] lists each member's channels group by group; None leaves them as they are.
    """

    over: str
    groups: int
    order: Tensor | None = None

    def to_variables(self, x: Tensor) -> Tensor:
        """Return the variables [M*G, k, n] of `x` [M, N, D]; batch whitening's are transposed."""
        M, N, D = x.shape
        width = D // self.groups
        blocks = x.view(M, N, self.groups, width).transpose(1, 2)
        if self.order is not None:
            index = self.order.view(M, self.groups, 1, width).expand_as(blocks)
            blocks = x[:, None].expand(M, self.groups, N, D).gather(-1, index)
        blocks = blocks.reshape(-1, N, width)
        return blocks.mT if self.over == "batch" else blocks

    def from_variables(self, variables: Tensor) -> Tensor:
        """Return x [M, N, D] again: the inverse of `to_variables`, and its transpose."""
        blocks = variables.mT if self.over == "batch" else variables
        N, width = blocks.shape[-2:]
        x = blocks.reshape(-1, self.groups, N, width).transpose(1, 2)
        x = x.reshape(-1, N, self.groups * width)
        if self.order is None:
            return x
        return x.gather(-1, inverse_permutation(self.order)[:, None, :].expand_as(x))

    def per_sample(self, factor: Tensor) -> Tensor:
        """Return `factor` [..., N, 1] as it stands beside variables; a single number stays one."""
        if factor.dim() == 0:
            return factor
        factor = factor.reshape(-1, *factor.shape[-2:])
        if self.groups > 1:
            factor = factor.repeat_interleave(self.groups, 0)
        return factor.mT if self.over == "batch" else factor

    def centre_(self, x: Tensor) -> Tensor:
        """Subtract from `x` [M, N, D], in place, the mean over samples or over all channels."""
        return x.sub_(x.mean(1 if self.over == "batch" else 2, keepdim=True))


@dataclass(frozen=True)
class Factors:
    """The factorised parts of a batch of B, and the `scale` of their covariance."""

    roots: list[InverseRoot]
    scale: float

    @property
    def needs_variables(self) -> bool:
        """Return whether `pull_back` wants A."""
        return self.roots[0].needs_variables

    def num_regularized(self) -> Tensor:
        """Return how many members needed a ridge."""
        return torch.stack([root.num_regularized for root in self.roots]).sum()

    def pull_back(self, grad: Tensor, output: Tensor, variables: Tensor | None) -> Tensor:
        """Return dL/dA for `grad` dL/dY [B, k, n], `output` Y, and A where it is needed."""
        kept = output if variables is None else variables
        parts = len(self.roots)
        return join(in_parts(self._pull_back_part, parts, grad, output, kept, self.roots))

    def _pull_back_part(
        self, grad: Tensor, output: Tensor, variables: Tensor, root: InverseRoot
    ) -> Tensor:
        return root.pull_back(grad, output, variables, self.scale)


@dataclass(frozen=True)
class Whitening:
    """By which W: `method`, shrinkage `eps`, and IterNorm's number of steps, if fixed."""

    method: str
    eps: float = 0.0
    newton_iterations: int | None = None

    def scale(self, variables: Tensor) -> float:
        """Return the factor of A Aᵀ in S = (1 - eps) A Aᵀ / (n - 1) + eps I."""
        return (1.0 - self.eps) / (variables.shape[-1] - 1)

    def factorise(self, variables: Tensor) -> tuple[Factors, Tensor]:
        """Return the factors of `variables` A [B, k, n] and Y = W A."""
        parts = in_parts(self._factorise_part, num_parts(variables), variables)
        roots = [root for root, _ in parts]
        return Factors(roots, self.scale(variables)), join([output for _, output in parts])

    def _factorise_part(self, variables: Tensor) -> tuple[InverseRoot, Tensor]:
        root = self.root(variables)
        return root, root.apply(variables)

    def root(self, variables: Tensor) -> InverseRoot:
        """Return W for the covariance of `variables` [B, k, n]."""
        covariance = variables @ variables.mT
        covariance *= self.scale(variables)
        if self.eps:
            covariance.diagonal(dim1=-2, dim2=-1).add_(self.eps)
        return inverse_root(covariance, self.method, self.newton_iterations)


def inverse_permutation(permutation: Tensor) -> Tensor:
    """Return q with q[p[i]] = i for each `permutation` p [..., D]."""
    positions = torch.arange(permutation.shape[-1], device=permutation.device)
    return torch.empty_like(permutation).scatter_(-1, permutation, positions.expand_as(permutation))


def refuse_no_permutation(name: str, indices: Tensor) -> None:
    """Raise ValueError unless each last dimension of int64 `indices` [..., D] is a permutation."""
    size = indices.shape[-1]
    in_order = torch.arange(size, device=indices.device).expand_as(indices)
    if not torch.equal(indices.sort(-1).values, in_order):
        raise ValueError(f"{name} is not a permutation of 0..{size - 1} along its last dimension")


class _Whiten(torch.autograd.Function):
    """Whitened x [M, N, D]; the derivative is in `pretrain.inverse_roots`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, arrangement: Arrangement, whitening: Whitening) -> Tensor:
        centred = arrangement.centre_(x.clone(memory_format=torch.contiguous_format))
        variables = arrangement.to_variables(centred)
        factors, output = whitening.factorise(variables)
        ctx.arrangement, ctx.factors = arrangement, factors
        ctx.save_for_backward(output, variables if factors.needs_variables else None)
        return arrangement.from_variables(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        output, variables = ctx.saved_tensors
        with full_precision(grad.device):
            grad = ctx.arrangement.to_variables(grad.clone(memory_format=torch.contiguous_format))
            grad = ctx.factors.pull_back(grad, output, variables)
            return ctx.arrangement.centre_(ctx.arrangement.from_variables(grad)), None, None


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
    """Return `x` [..., N, D] whitened; every leading index is a whitening of its own.

    `over="batch"` whitens each group's channels over the samples, `over="channels"` whitens the
    samples over each group's channels, each sample centred over all its channels. Covariances
    divide by the number of observations less one. `eps` shrinks them: (1 - eps) S + eps I. Group g
    takes the channels `partition[..., g*D/G : (g+1)*D/G]`; the output keeps the input's channel
    order (PCA over the batch puts its components where its group's channels were).

    `newton` iterates to convergence, which makes it `zca`, or just `newton_iterations` times, as
    IterNorm does. Singular covariances get a ridge (see `pretrain.inverse_roots`). Computed in
    float32, or in float64 for float64 input, whatever autocast says. Differentiable once.

    Raises:
        ValueError: for an unknown name, a partition that does not fit, indivisible groups, or too
            few samples for batch whitening with eps 0.
    """
    _check(x, over, method, groups, eps)
    *lead, N, D = x.shape
    if partition is not None:
        partition = _checked_partition(partition, x).reshape(-1, D)
    arrangement = Arrangement(over, groups, partition)
    with full_precision(x.device):
        flat = (x if x.dtype == torch.float64 else x.float()).reshape(-1, N, D)
        output = _Whiten.apply(flat, arrangement, Whitening(method, eps, newton_iterations))
    return output.view(*lead, N, D)  # type: ignore[no-any-return]


def _check(x: Tensor, over: str, method: str, groups: int, eps: float) -> None:
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
