"""One LAPACK call per matrix, spread over the cores: torch runs such batches serially on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch
from torch import Tensor


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


def map_matrices(
    function: Callable[[Tensor], Sequence[Tensor]], matrices: Tensor
) -> tuple[Tensor, ...]:
    """Return `function(matrices)` for `matrices` [B, ...], computed in one part per thread.

    `function` treats the B members independently and returns tensors [B, ...]; matrices among
    them come back in Fortran order, as LAPACK leaves them.
    """
    num_parts = min(torch.get_num_threads(), matrices.shape[0])
    if matrices.device.type != "cpu" or num_parts == 1:
        return tuple(function(matrices))
    parts = _pool(torch.get_num_threads(), os.getpid()).map(function, matrices.chunk(num_parts))
    return tuple(
        torch.cat([t.mT for t in group]).mT if group[0].dim() > 2 else torch.cat(group)
        for group in zip(*parts, strict=True)
    )
