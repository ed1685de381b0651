"""Where every random number of a run comes from: hashes of (seed, epoch, index, ...)."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*parts: int) -> int:
    """Return a 63-bit seed from (seed, epoch, index, ...), the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def epoch_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """Return the permutation of `num_images` that belongs to (seed, epoch)."""
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
    return torch.randperm(num_images, generator=generator).tolist()
