"""Settings that make batches of small matrices fast on a CPU: one core, memory that stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@cache
def keep_freed_memory() -> None:
    """Make glibc keep up to 60 MB of freed memory for the next step; done once per process.

    By default it returns what exceeds twice the largest block freed so far, so that a loss whose
    temporaries are a few MB has them mapped and zeroed anew at every step, which costs as much as
    a third of its time. Freeing one larger block, never touched, moves that limit. A training
    process with large activations has got there by itself.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep LAPACK calls and triangular solves from using several cores for a small matrix.

    A second core makes them slower, up to three times at 64 x 64. Threads that compute already keep
    their number; one that does so for the first time meanwhile stays on one core.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
