"""Shared memory, through which a loader's workers hand over the batches that they hold ready."""

from __future__ import annotations

import shutil
from pathlib import Path

from pretrain.config.data import DataConfig

SHARED_MEMORY = Path("/dev/shm")
GB = 1e9


def bytes_ready(data: DataConfig, batch_bytes: int) -> int:
    """Return the bytes of all batches that the workers of one process can hold ready at a time.

    They do whenever training pauses, such as for a checkpoint or a probe.
    """
    return data.num_workers * data.prefetch * batch_bytes


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
