"""Where the channels of whitened members stand, and which of them are whitened together.

Legend: N samples, D channels, G groups, M members, k variables, n observations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pretrain.runtime.cpu import transposed


@dataclass(frozen=True)
class Arrangement:
    """How M members [M, N, D] become variables [M*G, k, n], and back.

    Members with groups or an `order` are turned, so that channels stand by rows [M, D, N] and are
    moved as whole rows; all others stay. `order` [M, D] lists each member's channels group by
    group; None leaves them as they are. Variables are views of the channels dealt to groups.
    """

    over: str
    groups: int
    order: Tensor | None = None

    @property
    def turned(self) -> bool:
        """Whether members stand channels by rows."""
        return self.groups > 1 or self.order is not None

    @property
    def channel_dim(self) -> int:
        """Return the dimension of the channels in a member as it stands."""
        return -2 if self.turned else -1

    def turn(self, x: Tensor) -> Tensor:
        """Return members [M, N, D] as they stand, or those that stand as [M, N, D]."""
        return transposed(x) if self.turned else x

    def centred(self, members: Tensor) -> Tensor:
        """Return `members` as they stand less their mean over samples or over all channels."""
        return members - members.mean(-1 if self._variables_by_rows else -2, keepdim=True)

    @property
    def _variables_by_rows(self) -> bool:
        """Whether rows of members as they stand are variables, and columns observations."""
        return (self.over == "batch") == self.turned

    @cached_property
    def _rows(self) -> Tensor:
        """Row numbers [M*D] of all members' channels, in the order of the groups."""
        assert self.order is not None
        M, D = self.order.shape
        return (self.order + D * torch.arange(M, device=self.order.device)[:, None]).flatten()

    def deal(self, members: Tensor) -> Tensor:
        """Return `members` as they stand, with their channels in the order of the groups."""
        if self.order is None:
            return members
        N = members.shape[-1]
        return members.view(-1, N).index_select(0, self._rows).view_as(members)

    def undeal(self, dealt: Tensor) -> Tensor:
        """Return `dealt` members with their channels in order: the inverse of `deal`."""
        if self.order is None:
            return dealt
        rows, N = inverse_permutation(self._rows), dealt.shape[-1]
        return dealt.view(-1, N).index_select(0, rows).view_as(dealt)

    def to_variables(self, dealt: Tensor) -> Tensor:
        """Return the variables [M*G, k, n] of `dealt` members; a view."""
        if self.turned:
            _, D, N = dealt.shape
            dealt = dealt.view(-1, D // self.groups, N)
        return dealt if self._variables_by_rows else dealt.mT

    def from_variables(self, variables: Tensor) -> Tensor:
        """Return the dealt members, rows first: the inverse of `to_variables`."""
        blocks = variables if self._variables_by_rows else variables.mT
        if self.turned:
            width, N = blocks.shape[-2:]
            blocks = blocks.reshape(-1, self.groups * width, N)
        return blocks.contiguous()


def inverse_permutation(permutation: Tensor) -> Tensor:
    """Return q with q[p[i]] = i for each `permutation` p [..., D]."""
    positions = torch.arange(permutation.shape[-1], device=permutation.device)
    return torch.empty_like(permutation).scatter_(-1, permutation, positions.expand_as(permutation))
