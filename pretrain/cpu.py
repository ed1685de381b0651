"""What makes batches of small matrices fast on a CPU: both cores, and memory that stays mapped."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch
from torch import Tensor


@cache
def keep_freed_memory() -> None:
    """Make glibc keep up to 60 MB of freed memory for the next step; done once per process.

    By default it returns what exceeds twice the largest block freed so far, so that a loss whose
    temporaries are a few MB has them mapped and zeroed anew at every step, which costs as much as
    a third of its time. Freeing one larger block, never touched, moves that limit. A training
    process with large activations has got there by itself.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


@cache
def _pool(num_threads: int, process: int) -> ThreadPoolExecutor:
    """Return `num_threads` workers that use one core each; `process` keeps forks apart."""
    del process
    ready = Barrier(num_threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(num_threads, "whitening", initializer=start)
    for _ in range(num_threads):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(num_threads)  # what threads started later take over
    return pool


def map_matrices(function: Callable[..., Sequence[Tensor]], *batches: Tensor) -> tuple[Tensor, ...]:
    """Return `function(*batches)` for `batches` [B, ...], computed in one part per thread.

    For LAPACK and triangular solves, which torch runs one matrix after the other on a CPU.

    `function` treats the B members independently and returns tensors [B, ...]. Those with more
    than two dimensions keep the memory order, rows or columns first, in which they come.
    """
    num_parts = min(torch.get_num_threads(), batches[0].shape[0])
    if batches[0].device.type != "cpu" or num_parts == 1:
        return tuple(function(*batches))
    parts = zip(*(batch.chunk(num_parts) for batch in batches), strict=True)
    pool = _pool(torch.get_num_threads(), os.getpid())
    results = [future.result() for future in [pool.submit(function, *part) for part in parts]]
    return tuple(_join(group) for group in zip(*results, strict=True))


def _join(parts: Sequence[Tensor]) -> Tensor:
    if parts[0].dim() > 2 and parts[0].mT.is_contiguous():
        return torch.cat([part.mT for part in parts]).mT
    return torch.cat(list(parts))
