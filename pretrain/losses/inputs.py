"""What every loss makes sure of before it computes."""

from __future__ import annotations

import torch
from torch import Tensor


def computed(embeddings: Tensor) -> Tensor:
    """Return `embeddings` in the precision of the loss: float32, or float64 as they are."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def refuse(faults: list[str]) -> None:
    """Raise ValueError with all `faults`, if any."""
    if faults:
        raise ValueError("; ".join(faults))


def check_views(embeddings: Tensor) -> None:
    """Raise ValueError unless `embeddings` are [V, N, D] with two views or more."""
    if embeddings.dim() != 3 or embeddings.shape[0] < 2:
        raise ValueError(
            f"embeddings want [V views, N batch, D] with at least 2 views, "
            f"got {list(embeddings.shape)}"
        )
