"""Self-supervised losses on embeddings of several views: W-MSE, CW-RGP, and their controls.

Legend: V views, N batch, D embedding dimension, S = N / sub_batch sub-batches, T iterations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.loss_config import whitening_faults
from pretrain.whitening import whiten_counted


class WhiteningLoss(nn.Module):
    """Mean squared distance between the whitened views of an image, over all pairs of views.

    Each of `iterations` rounds shuffles the batch, cuts it into sub-batches (the same images in
    every view), whitens every sub-batch of every view on its own, and compares the views:
    squared distance between L2-normalised outputs (`normalize`), else the mean squared error.
    With `random_partition` the channels are dealt to the groups anew for every round, sub-batch
    and view. `covariance_weight` adds the squared off-diagonal entries of the sample x sample
    covariance over channels of the whole batch, summed, divided by N, summed over views.

    `regularized_count` counts the factorisations that needed a ridge so far.
    """

    def __init__(
        self,
        sub_batch: int,
        *,
        over: str,
        method: str,
        groups: int = 1,
        random_partition: bool = False,
        iterations: int = 1,
        normalize: bool = True,
        eps: float = 0.0,
        covariance_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.sub_batch, self.iterations, self.groups = sub_batch, iterations, groups
        self.over, self.method, self.random_partition = over, method, random_partition
        self.normalize, self.eps, self.covariance_weight = normalize, eps, covariance_weight
        self._regularized: Tensor | None = None

    @property
    def regularized_count(self) -> int:
        """Factorisations that needed a ridge since construction; waits for the device."""
        return 0 if self._regularized is None else int(self._regularized)

    def check(self, batch_size: int, embedding_dim: int) -> list[str]:
        """Return all reasons why N `batch_size` and D `embedding_dim` cannot work, or []."""
        faults = []
        if batch_size % self.sub_batch:
            faults.append(
                f"batch of {batch_size} images is not divisible by sub_batch {self.sub_batch}; "
                f"choose a sub_batch among the divisors of {batch_size}"
            )
        return faults + whitening_faults(
            self.over, self.sub_batch, embedding_dim, self.groups, self.eps
        )

    def forward(
        self,
        embeddings: Tensor,
        *,
        generator: torch.Generator | None = None,
        batch_permutation: Tensor | None = None,
        channel_partition: Tensor | None = None,
    ) -> Tensor:
        """Return the scalar loss of `embeddings` [V, N, D].

        `batch_permutation` [T, N] and `channel_partition` [T, S, V, D] are drawn from `generator`
        unless given.
        """
        V, N, D = embeddings.shape
        faults = self.check(N, D)
        if faults:
            raise ValueError("; ".join(faults))
        device = embeddings.device
        T, S, n = self.iterations, N // self.sub_batch, self.sub_batch
        if batch_permutation is None:
            batch_permutation = torch.stack(
                [torch.randperm(N, generator=generator) for _ in range(T)]
            )
        if channel_partition is None and self.random_partition:
            channel_partition = torch.rand(T, S, V, D, generator=generator).argsort(-1)
        with torch.autocast(device.type, enabled=False):
            x = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
            shuffled = x[:, batch_permutation.to(device)].reshape(V, T, S, n, D)
            partition = None
            if channel_partition is not None:
                partition = channel_partition.to(device).permute(2, 0, 1, 3)
            white, count = whiten_counted(
                shuffled,
                over=self.over,
                method=self.method,
                groups=self.groups,
                partition=partition,
                eps=self.eps,
            )
            self._regularized = count if self._regularized is None else self._regularized + count
            loss = mean_pair_distance(white, normalize=self.normalize)
            if self.covariance_weight:
                loss = loss + self.covariance_weight * covariance_penalty(x)
        return loss


def mean_pair_distance(views: Tensor, *, normalize: bool) -> Tensor:
    """Return the mean over all pairs of V of the squared distance of `views` [V, ..., D].

    Uses sum_{i<j} |a_i - a_j|^2 = V sum |a_i|^2 - |sum a_i|^2. Without `normalize` the distance
    is divided by D.
    """
    V, D = views.shape[0], views.shape[-1]
    if normalize:
        views = nn.functional.normalize(views, dim=-1)
    total = V * views.square().sum() - views.sum(0).square().sum()
    num_vectors = views[0].numel() // D
    return total * (2.0 / (V * (V - 1) * num_vectors * (1 if normalize else D)))


def covariance_penalty(embeddings: Tensor) -> Tensor:
    """Return the off-diagonal covariance between samples of `embeddings` [V, N, D], per sample."""
    _, N, D = embeddings.shape
    centred = embeddings - embeddings.mean(-1, keepdim=True)
    covariance = centred @ centred.mT / (D - 1)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    return (covariance.square().sum() - diagonal.square().sum()) / N


class WMSELoss(WhiteningLoss):
    """W-MSE (Ermolov et al., arXiv 2007.06346, eq. 5-7): batch whitening, Cholesky by default."""

    def __init__(
        self,
        sub_batch: int,
        *,
        iterations: int = 1,
        normalize: bool = True,
        method: str = "cholesky",
        groups: int = 1,
        eps: float = 0.0,
    ) -> None:
        super().__init__(
            sub_batch,
            over="batch",
            method=method,
            groups=groups,
            random_partition=groups > 1,
            iterations=iterations,
            normalize=normalize,
            eps=eps,
        )


class CWRGPLoss(WhiteningLoss):
    """CW-RGP (Weng et al., arXiv 2210.03586, section 4.2): channel whitening, random partition."""

    def __init__(
        self,
        sub_batch: int,
        groups: int,
        *,
        iterations: int = 1,
        normalize: bool = True,
        method: str = "zca",
        eps: float = 0.0,
        covariance_weight: float = 0.0,
    ) -> None:
        super().__init__(
            sub_batch,
            over="channels",
            method=method,
            groups=groups,
            random_partition=groups > 1,
            iterations=iterations,
            normalize=normalize,
            eps=eps,
            covariance_weight=covariance_weight,
        )
