"""Random numbers of a run: seeds derived from (seed, epoch, index, ...), and states to keep."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch


def derived_seed(*parts: int) -> int:
    """Return a 63-bit seed from (seed, epoch, index, ...), the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def epoch_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """Return the permutation of `num_images` that belongs to (seed, epoch)."""
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
    return torch.randperm(num_images, generator=generator).tolist()


def seed_process(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch (on every device) from (seed, rank)."""
    number = derived_seed(seed, rank, 3)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def random_states() -> dict[str, Any]:
    """Return the states of Python, NumPy, torch and the current GPU; `weights_only` reads them."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.tensor(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Set what `random_states` returned; a GPU's state is left out where there is no GPU."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
