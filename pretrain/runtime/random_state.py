"""Every random state of a process, set from seeds, and as tensors and numbers for a checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from pretrain.views.loader import derived_seed


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
