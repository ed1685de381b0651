"""Shared memory that workers' batches take, and what is said where there is less."""

from collections import namedtuple
from pathlib import Path

import pytest

from pretrain.config.data import DataConfig
from pretrain.data import shared_memory
from pretrain.data.shared_memory import bytes_ready, shared_memory_faults

Usage = namedtuple("Usage", "total used free")


def data(**settings: int) -> DataConfig:
    return DataConfig.model_validate({"name": "some", "root": "/", **settings})


def test_each_worker_holds_its_batches_ready() -> None:
    assert bytes_ready(data(), 100) == 0
    assert bytes_ready(data(num_workers=4), 100) == 800
    assert bytes_ready(data(num_workers=4, prefetch=5), 100) == 2000


def test_less_than_they_need_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: Usage(0, 0, 64 * 10**6))
    config = data(num_workers=16)
    assert shared_memory_faults(64 * 10**6, config) == []
    (fault,) = shared_memory_faults(9_865_000_000, config, ", or pray")
    assert fault == (
        "data.num_workers 16, which hold data.prefetch 2 batches ready each: they need 9.9 GB of "
        f"shared memory, and {tmp_path} has 0.1 GB free; lower one of them, or pray, or enlarge it "
        "(in a container: --shm-size=10g)"
    )


def test_a_system_without_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", Path("/no/such/folder"))
    assert shared_memory_faults(10**15, data(num_workers=1)) == []
