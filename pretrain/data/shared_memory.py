"""Shared memory, in which a loader's workers hand over their batches, and what there is of it."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.config.data import DataConfig

SHARED_MEMORY = Path("/dev/shm")
GB = 1e9
ALIGNMENT = 64  # bytes, of each tensor in a block, as torch's own


def num_batches(data: DataConfig) -> int:
    """Return how many batches of one process are in shared memory at a time.

    Its workers hold theirs ready whenever training pauses, such as for a checkpoint or a probe. It
    has two itself: the last one is let go when the next is there.
    """
    return data.num_workers * data.prefetch + 2 if data.num_workers else 0


def shared_memory_faults(num_bytes: int, data: DataConfig, remedy: str = "") -> list[str]:
    """Return why /dev/shm cannot hold so many bytes, or []; workers would die of a bus error.

    `remedy` is what else helps.
    """
    if not num_bytes or not SHARED_MEMORY.is_dir():
        return []
    free = shutil.disk_usage(SHARED_MEMORY).free
    if num_bytes <= free:
        return []
    return [
        f"data.num_workers {data.num_workers}, which hold data.prefetch {data.prefetch} batches "
        f"ready each: they need {num_bytes / GB:.1f} GB of shared memory, and {SHARED_MEMORY} has "
        f"{free / GB:.1f} GB free; lower one of them{remedy}, or enlarge it (in a container: "
        f"--shm-size={-(-num_bytes // 10**9)}g)"
    ]


class Blocks:
    """Shared memory for batches, used again: its pages are made once, and nothing is copied.

    The process that trains takes a number from `free` for each batch that it asks a worker for, or
    None while all blocks are in use. The worker makes the batch's tensors in that `Block` and sends
    where they lie; when they arrive, the process makes one storage of the block, of which they are
    parts. It lives as long as anything looks at it: a slice, an array, a graph. Python tells when
    the last of them is gone (of a batch that is copied to pinned memory, or that nobody fetches, at
    once), and the number is free; that of a batch that raised an error is lost. What has no number,
    or no room in its block, is sent as torch sends any tensor.
    """

    def __init__(self, number: int, num_bytes: int) -> None:
        self.key = id(self)
        self.num_bytes = (num_bytes // mmap.PAGESIZE + 2) * mmap.PAGESIZE  # with gaps
        self.free = deque(range(number))
        self.file = tempfile.TemporaryFile(dir=SHARED_MEMORY)  # noqa: SIM115  (closed below)
        weakref.finalize(self, self.file.close)
        self.file.truncate(number * self.num_bytes)
        self.memory = mmap.mmap(self.file.fileno(), 0)
        _BLOCKS[self.key] = self

    def __getstate__(self) -> tuple[Any, ...]:
        """Return what a worker gets that is not forked."""
        return self.key, self.num_bytes, DupFd(self.file.fileno())

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.key, self.num_bytes, file = state
        descriptor = file.detach()
        self.memory = mmap.mmap(descriptor, 0)
        os.close(descriptor)

    def block(self, number: int, released: Callable[[int], None] | None = None) -> Tensor:
        """Return the bytes of a block; `released` gets its number after their last use."""
        start = number * self.num_bytes
        part = memoryview(self.memory)[start : start + self.num_bytes]
        if released is not None:
            weakref.finalize(part, released, number)
        return torch.frombuffer(part, dtype=torch.uint8)


_BLOCKS: weakref.WeakValueDictionary[int, Blocks] = weakref.WeakValueDictionary()  # by their keys


class Block:
    """A block that a worker fills; it arrives as the batch in it."""

    def __init__(self, blocks: Blocks, number: int) -> None:
        self.key, self.number = blocks.key, number
        self.memory = blocks.block(number)
        self.used = 0
        self.batch: Any = None

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor as `torch.empty` does, in this block while there is room."""
        start, end = self.used, self.used + math.prod(shape) * dtype.itemsize
        if end > len(self.memory):
            return torch.empty(shape, dtype=dtype)
        self.used = -(-end // ALIGNMENT) * ALIGNMENT
        return self.memory[start:end].view(dtype).view(tuple(shape))

    def filled(self, batch: Any) -> Block:
        """Return the block with `batch`, lists and tuples of tensors in it or elsewhere."""
        self.batch = batch
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        def placed(x: Tensor) -> Tensor | _Place:
            if x.untyped_storage().data_ptr() != self.memory.data_ptr():
                return x
            return _Place((x.dtype, tuple(x.shape), x.stride(), x.storage_offset()))

        return _received, (self.key, self.number, _replaced(self.batch, Tensor, placed))


class _Place(NamedTuple):
    """Where in its block a tensor lies."""

    values: tuple[Any, ...]


def _received(key: int, number: int, batch: Any) -> Any:
    """Return `batch` with tensors for their places in a block of this process."""
    blocks = _BLOCKS[key]
    memory = blocks.block(number, blocks.free.append)

    def tensor(place: _Place) -> Tensor:
        dtype, *layout = place.values
        return memory.view(dtype).as_strided(*layout)

    return _replaced(batch, _Place, tensor)


def _replaced(batch: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Return `batch` with `function` done to all of `kind` in its lists and tuples."""
    if isinstance(batch, kind):
        return function(batch)
    if not isinstance(batch, list | tuple):
        return batch
    parts = [_replaced(part, kind, function) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
