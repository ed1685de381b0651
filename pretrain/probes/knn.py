"""The k nearest neighbours, of more pairs than memory holds distances of, and their votes.

Legend: Q queries, B images of the bank, F features, k neighbours, C classes.

Neighbours are ordered by distance and, at equal distance, by their place in the bank. Classes are
ordered by their votes and, at equal votes, by their label, as the papers' code and scikit-learn do.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 512 * 2**20
BYTES_PER_PAIR = 12  # a float32 distance and an int64 key
BANK_ROWS = 8192
FARTHEST = torch.iinfo(torch.int64).max


class Neighbours:
    """The k nearest of a bank to each query [Q, F]; the bank comes in chunks, none of them kept.

    Beside the queries and one chunk, at most about `chunk_bytes` are used, however large the bank
    is. Distances are squared and of float32; of features that are shifted by the queries' mean,
    which keeps digits where all have a large common part.

    Args:
        queries: [Q, F], on the device that compares.
        k: Neighbours of each query, at least 1.
        cosine: Compare the features scaled to length 1, whose squared distance is 2 (1 - cosine).
        chunk_bytes: Memory for the distances that are kept at once.

    Raises:
        ValueError: k is below 1.

    Example:
        >>> neighbours = Neighbours(torch.tensor([[0.0, 0.0]]), k=2)
        >>> neighbours.add(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
        >>> neighbours.nearest()
        (tensor([[4., 9.]]), tensor([[1, 0]]))
    """

    def __init__(
        self, queries: Tensor, k: int, *, cosine: bool = False, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        self.cosine = cosine
        queries = F.normalize(queries.float(), dim=1) if cosine else queries.float()
        self.origin = queries.mean(0)
        self.queries = queries - self.origin
        self.height = max(1, chunk_bytes // (BYTES_PER_PAIR * BANK_ROWS))
        self.width = min(BANK_ROWS, max(1, chunk_bytes // BYTES_PER_PAIR))
        self.best = torch.full((len(queries), k), FARTHEST, device=queries.device)
        self.labels: list[Tensor] = []
        self.seen = 0

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Compare the queries with the next images of the bank, features [n, F], labels [n]."""
        for part_of_bank in torch.split(features.to(self.queries.device), self.width):
            rows = part_of_bank.float()
            rows = (F.normalize(rows, dim=1) if self.cosine else rows) - self.origin
            for start in range(0, len(self.queries), self.height):
                part = slice(start, start + self.height)
                keys = _keys(self.queries[part], rows, self.seen)
                nearest = keys.topk(min(self.k, len(rows)), largest=False).values
                both = torch.cat([self.best[part], nearest], dim=1)
                self.best[part] = both.topk(self.k, largest=False).values
            self.seen += len(rows)
        self.labels.append(labels.to(self.queries.device))

    def nearest(self) -> tuple[Tensor, Tensor]:
        """Return squared distances and labels [Q, k], nearest first.

        Raises:
            ValueError: the bank holds fewer than k images.
        """
        if self.seen < self.k:
            raise ValueError(f"{self.seen} images are fewer than the k = {self.k} that vote")
        distances = (self.best >> 32).to(torch.int32).view(torch.float32)
        return distances, torch.cat(self.labels)[self.best & 0xFFFFFFFF]


def _keys(queries: Tensor, rows: Tensor, first: int) -> Tensor:
    """Return an int64 key per pair [q, b] that orders as (distance, place in the bank).

    The bits of a float that is not negative order as the float does.
    """
    distances = torch.addmm(rows.square().sum(1), queries, rows.mT, alpha=-2)
    distances.add_(queries.square().sum(1, keepdim=True)).clamp_(min=0)
    places = torch.arange(first, first + len(rows), device=rows.device)
    return distances.view(torch.int32).to(torch.int64).bitwise_left_shift_(32).add_(places)


def votes(
    distances: Tensor, labels: Tensor, num_classes: int, temperature: float | None = None
) -> Tensor:
    """Return the votes [Q, C] of the neighbours; minus infinity for a class without one.

    Args:
        distances: [Q, k], squared, the nearest first.
        labels: [Q, k] int64, the neighbours' classes from 0 to C - 1.
        num_classes: C.
        temperature: Above 0; a neighbour then votes with exp(cosine / temperature), where
            distances are those of unit vectors, relative to the nearest's vote, which changes no
            order and cannot underflow there. Without it each has one vote.

    Raises:
        ValueError: A label is none of the classes, or the temperature is not above 0.

    Example:
        >>> neighbours = Neighbours(torch.tensor([[0.0, 0.0]]), k=3)
        >>> bank = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
        >>> neighbours.add(bank, torch.tensor([1, 0, 1]))
        >>> votes(*neighbours.nearest(), num_classes=3)
        tensor([[1., 2., -inf]])
    """
    refuse_labels(labels, num_classes)
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    weights = torch.ones_like(distances)
    if temperature is not None:
        weights = torch.exp(0.5 * (distances[:, :1] - distances) / temperature)
    scores = weights.new_zeros(len(distances), num_classes)
    present = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels, value=True)
    return scores.scatter_add_(1, labels, weights).masked_fill_(~present, -math.inf)


def refuse_labels(labels: Tensor, num_classes: int) -> None:
    """Raise ValueError unless all `labels` are from 0 to `num_classes` - 1."""
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels of {num_classes} classes go from 0 to {num_classes - 1}, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )


def accuracy(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """Return `top1` and, with more than 5 classes, `top5` in percent.

    Of classes with equal scores the lower label comes first. A class with score minus infinity was
    not named at all and is never right.

    Args:
        scores: [Q, C], of any unit: votes, logits.
        targets: [Q] int64, the right classes.

    Raises:
        ValueError: A score is NaN.

    Example:
        >>> accuracy(torch.tensor([[1.0, 2.0, -math.inf], [3.0, 0.0, 3.0]]), torch.tensor([1, 2]))
        {'top1': 50.0}
    """
    if bool(scores.isnan().any()):
        raise ValueError("the classifier's scores are NaN")
    targets = targets.to(scores.device)
    right = scores.gather(1, targets[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    rank = ((scores > right) | ((scores == right) & lower)).sum(1)
    named = right[:, 0] > -math.inf
    levels = (1, 5) if scores.shape[1] > 5 else (1,)
    return {f"top{n}": 100 * float(((rank < n) & named).double().mean()) for n in levels}
