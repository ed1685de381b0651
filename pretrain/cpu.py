"""What makes batches of small matrices fast on a CPU: both cores, and memory that stays mapped."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar

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


def num_parts(batch: Tensor) -> int:
    """Return into how many parts to cut `batch` [B, ...]: one per core, but one off the CPU."""
    return min(torch.get_num_threads(), len(batch)) if batch.device.type == "cpu" else 1


def in_parts(
    function: Callable[..., Result], parts: int, *batches: Tensor | Sequence[Any]
) -> list[Result]:
    """Return what `function` returns for each of `parts` parts of `batches`.

    Tensors [B, ...] are cut along B, equally many members or one more in each part; a sequence
    already has an entry per part. Torch runs LAPACK calls and triangular solves of a batch one
    after the other, so each part runs in a thread of its own, on a single core. A single part
    runs here.
    """
    cut = [b.tensor_split(parts) if isinstance(b, Tensor) else b for b in batches]
    if parts == 1:
        return [function(*part) for part in zip(*cut, strict=True)]
    pool = _pool(parts, os.getpid())
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    tasks = zip(*cut, strict=True)
    futures = [pool.submit(_in_modes, grad, inference, function, *task) for task in tasks]
    return [future.result() for future in futures]


def _in_modes(
    grad: bool, inference: bool, function: Callable[..., Result], *arguments: Any
) -> Result:
    """Return `function(*arguments)` in the modes of the caller's thread."""
    with torch.inference_mode(inference), torch.set_grad_enabled(grad):
        return function(*arguments)


def on_one_core(function: Callable[..., Result], parts: int, *arguments: Any) -> Result:
    """Return `function(*arguments)`, run between two calls of `in_parts` with as many parts.

    In a thread of theirs: torch's own helper threads wait actively for milliseconds after they
    had some work, on the cores that the parts want next.
    """
    if parts == 1:
        return function(*arguments)
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return (
        _pool(parts, os.getpid()).submit(_in_modes, grad, inference, function, *arguments).result()
    )


def transposed(batch: Tensor) -> Tensor:
    """Return `batch` [B, i, j] as [B, j, i], always in new memory, rows first."""
    if batch.device.type != "cpu":
        return batch.mT.clone(memory_format=torch.contiguous_format)
    turned = batch.new_empty(batch.mT.shape)
    for target, source in zip(turned, batch, strict=True):
        target.copy_(source.t())  # of two dimensions: by blocks, several times as fast
    return turned
