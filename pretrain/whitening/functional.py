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

from pretrain.config.loss import whitening_faults
from pretrain.whitening.backward import InverseRoot
from pretrain.whitening.channel_groups import Arrangement
from pretrain.whitening.inverse_sqrt import METHODS, inverse_root
from pretrain.whitening.saved import save_for_backward, saved

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
class Whitened:
    """Some members whitened: Y [m*G, k, n], its factors, and A where the derivative wants it."""

    root: InverseRoot
    output: Tensor
    variables: Tensor | None

    def pull_back(self, grad: Tensor, scale: float) -> Tensor:
        """Return dL/dA for `grad` dL/dY, which it may overwrite."""
        return self.root.pull_back(grad, self.output, self.variables, scale)


@dataclass(frozen=True)
class Whitening:
    """By which W: `method`, shrinkage `eps`, and IterNorm's number of steps, if fixed."""

    method: str
    eps: float = 0.0
    newton_iterations: int | None = None

    def scale(self, num_observations: int) -> float:
        """Return the factor of A Aᵀ in S = (1 - eps) A Aᵀ / (n - 1) + eps I."""
        return (1.0 - self.eps) / (num_observations - 1)

    def root(self, variables: Tensor) -> InverseRoot:
        """Return W for the covariance of `variables` [B, k, n]."""
        covariance = variables @ variables.mT
        covariance *= self.scale(variables.shape[-1])
        if self.eps:
            covariance.diagonal(dim1=-2, dim2=-1).add_(self.eps)
        return inverse_root(covariance, self.method, self.newton_iterations)

    def forward(self, x: Tensor, arrangement: Arrangement) -> tuple[Whitened, Tensor]:
        """Return the whitened members `x` [M, N, D]: for the derivative, and as they stand.

        Both may be the same memory.
        """
        members = arrangement.centred(arrangement.turn(x))
        variables = arrangement.to_variables(arrangement.deal(members))
        root = self.root(variables)
        output = root.apply(variables)
        whitened = Whitened(root, output, variables if root.needs_variables else None)
        return whitened, arrangement.undeal(arrangement.from_variables(output))

    def backward(self, slope: Tensor, arrangement: Arrangement, whitened: Whitened) -> Tensor:
        """Return dL/dx [M, N, D] for the `slope` of the members as they stand.

        May overwrite `slope`.
        """
        variables = arrangement.to_variables(arrangement.deal(slope))
        variables = whitened.pull_back(variables, self.scale(variables.shape[-1]))
        members = arrangement.undeal(arrangement.from_variables(variables))
        return arrangement.turn(arrangement.centred(members))


def refuse_no_permutation(name: str, indices: Tensor) -> None:
    """Raise ValueError unless each last dimension of int64 `indices` [..., D] is a permutation."""
    size = indices.shape[-1]
    in_order = torch.arange(size, device=indices.device).expand_as(indices)
    if not torch.equal(indices.sort(-1).values, in_order):
        raise ValueError(f"{name} is not a permutation of 0..{size - 1} along its last dimension")


class _Whiten(torch.autograd.Function):
    """Whitened x [M, N, D]; the derivative is in `pretrain.whitening.backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, arrangement: Arrangement, whitening: Whitening) -> Tensor:
        whitened, white = whitening.forward(x, arrangement)
        save_for_backward(ctx, [arrangement, whitening, whitened])
        return arrangement.turn(white) if arrangement.turned else white.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        arrangement, whitening, whitened = saved(ctx)
        with full_precision(grad.device):
            slope = arrangement.turn(grad) if arrangement.turned else grad.clone()
            return whitening.backward(slope, arrangement, whitened), None, None


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
    IterNorm does. Singular covariances get a ridge (see `inverse_sqrt`). Computed in
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
