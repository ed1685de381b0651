"""What makes batches of small matrices fast on a CPU: a core for each, memory that stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


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
def _pool(num_workers: int, process: int) -> ThreadPoolExecutor:
    """Return `num_workers` threads that use one core each; `process` keeps forks apart."""
    del process
    num_threads = torch.get_num_threads()
    ready = Barrier(num_workers + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first look takes over the process's number
        with suppress(BrokenBarrierError):
            ready.wait()

    pool = ThreadPoolExecutor(num_workers, "whitening", initializer=start)
    try:
        for _ in range(num_workers):
            pool.submit(int)
        ready.wait()
    except BaseException:  # no thread to be had: let those go that have started and wait
        ready.abort()
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        torch.set_num_threads(num_threads)  # what threads started later take over
    return pool


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


def in_parts(function: Callable[[Tensor], Result], batch: Tensor) -> list[Result]:
    """Return what `function` returns for each part of `batch` [B, ...]: one a core, one off a CPU.

    The parts have equally many members or one more. Torch runs LAPACK calls of a batch one after
    the other, so each part runs in a thread of its own, on a single core. A single part runs here.
    """
    on_cpu = batch.device.type == "cpu"
    parts = batch.tensor_split(min(torch.get_num_threads(), len(batch)) if on_cpu else 1)
    with on_one_core():
        if len(parts) == 1:
            return [function(batch)]
        pool = _pool(len(parts), os.getpid())
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        futures = [pool.submit(_in_modes, grad, inference, function, part) for part in parts]
        return [future.result() for future in futures]


def _in_modes(
    grad: bool, inference: bool, function: Callable[[Tensor], Result], part: Tensor
) -> Result:
    """Return `function(part)` in the modes of the caller's thread."""
    with torch.inference_mode(inference), torch.set_grad_enabled(grad):
        return function(part)


def transposed(batch: Tensor) -> Tensor:
    """Return `batch` [B, i, j] as [B, j, i], always in new memory, rows first."""
    if batch.device.type != "cpu":
        return batch.mT.clone(memory_format=torch.contiguous_format)
    turned = batch.new_empty(batch.mT.shape)
    for target, source in zip(turned, batch, strict=True):
        target.copy_(source.t())  # of two dimensions: by blocks, several times as fast
    return turned
