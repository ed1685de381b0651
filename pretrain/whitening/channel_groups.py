"""Order of channels in groups, and the variables [B, k, n] that are whitened within a group.

Legend: M batch of whitenings, N samples, D channels, G groups, B = M G matrices, k variables,
n observations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChannelGroups:
    """How samples [M, N, D] become variables [M G, k, n], and back.

    With groups or an `order` the samples are transposed to [M, D, N], so that channels are moved as
    whole rows. `order` [M, D] lists the channels group by group; None leaves them as they are.
    """

    over: str
    num_groups: int
    order: Tensor | None = None

    @property
    def transposes(self) -> bool:
        """Whether samples are transposed to [M, D, N]."""
        return self.num_groups > 1 or self.order is not None

    @property
    def channel_dim(self) -> int:
        """Return the dimension of the channels after `transpose`."""
        return -2 if self.transposes else -1

    def transpose(self, x: Tensor) -> Tensor:
        """Return samples [M, N, D] as [M, D, N] in new memory if they are transposed, or back."""
        if not self.transposes:
            return x
        if x.device.type != "cpu":
            return x.mT.clone(memory_format=torch.contiguous_format)
        return torch.stack([matrix.t().contiguous() for matrix in x])  # by blocks: twice as fast

    def centred(self, x: Tensor) -> Tensor:
        """Return transposed samples less their mean over samples or over all channels."""
        return x - x.mean(-1 if self._variables_by_rows else -2, keepdim=True)

    @property
    def _variables_by_rows(self) -> bool:
        """Whether rows of transposed samples are variables, and columns observations."""
        return (self.over == "batch") == self.transposes

    def to_variables(self, x: Tensor) -> Tensor:
        """Return the variables [M G, k, n] of transposed samples, a view unless permuted."""
        if self.order is not None:
            x = _permute_rows(x, self.order)
        if self.transposes:
            _, D, N = x.shape
            x = x.reshape(-1, D // self.num_groups, N)
        return x if self._variables_by_rows else x.mT

    def from_variables(self, variables: Tensor) -> Tensor:
        """Return the transposed samples with channels in order: the inverse of `to_variables`."""
        x = variables if self._variables_by_rows else variables.mT
        if self.transposes:
            width, N = x.shape[-2:]
            x = x.reshape(-1, self.num_groups * width, N)
        if self.order is None:
            return x.contiguous()
        return _permute_rows(x, inverse_permutation(self.order))


def _permute_rows(x: Tensor, order: Tensor) -> Tensor:
    """Return the rows of each `x` [M, D, N] in `order` [M, D]."""
    M, D, N = x.shape
    rows = order + D * torch.arange(M, device=order.device)[:, None]
    return x.reshape(-1, N).index_select(0, rows.flatten()).view(M, D, N)


def inverse_permutation(permutation: Tensor) -> Tensor:
    """Return q with q[p[i]] = i for each `permutation` p [..., D]."""
    positions = torch.arange(permutation.shape[-1], device=permutation.device)
    return torch.empty_like(permutation).scatter_(-1, permutation, positions.expand_as(permutation))
