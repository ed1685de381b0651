"""Shared memory that workers' batches take, again and again, and what is said where it is less."""

import gc
from collections import namedtuple
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.data import DataConfig
from pretrain.data import shared_memory
from pretrain.data.shared_memory import Block, Blocks, num_batches, shared_memory_faults
from pretrain.views.batched import RawViews

Usage = namedtuple("Usage", "total used free")


def data(**settings: int) -> DataConfig:
    return DataConfig.model_validate({"name": "some", "root": "/", **settings})


def test_each_worker_holds_its_batches_ready_and_training_two() -> None:
    assert num_batches(data()) == 0
    assert num_batches(data(num_workers=4)) == 10
    assert num_batches(data(num_workers=4, prefetch=5)) == 22


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


def arrived(block: Block) -> Any:
    """Return what a process gets that is sent this block."""
    return ForkingPickler.loads(ForkingPickler.dumps(block))


def one_batch(blocks: Blocks) -> Tensor:
    """Return what arrives of a batch of ones in the next block."""
    block = Block(blocks, blocks.free.popleft())
    batch: Tensor = arrived(block.filled(block.empty((3, 4)).fill_(1)))
    return batch


def graph(x: Tensor) -> Tensor:
    return (x * torch.ones(4, requires_grad=True)).sum()


KEEPERS: dict[str, Callable[[Tensor], Any]] = {
    "the batch": lambda x: x,
    "a slice": lambda x: x[1],
    "one of another type": lambda x: x.view(torch.int32),
    "one detached": lambda x: x.detach(),
    "an array": lambda x: x.numpy(),
    "a part of its array": lambda x: x.numpy()[1:],
    "its storage": lambda x: x.untyped_storage(),
    "a graph": graph,
    "a reference cycle": lambda x: (cycle := [x], cycle.append(cycle)),
}


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_block_is_free_when_nothing_looks_at_it(keeper: str) -> None:
    blocks = Blocks(1, 48)
    kept = KEEPERS[keeper](one_batch(blocks))
    assert not blocks.free, keeper
    del kept
    gc.collect()
    assert list(blocks.free) == [0]
    assert torch.equal(one_batch(blocks), torch.ones(3, 4))


def test_a_copy_does_not_keep_it() -> None:
    blocks = Blocks(1, 48)
    copy = one_batch(blocks).clone()
    moved = one_batch(blocks).share_memory_()  # type: ignore[no-untyped-call]  # torch moves it
    assert list(blocks.free) == [0]
    one_batch(blocks).fill_(7)
    assert torch.equal(copy, torch.ones(3, 4)) and torch.equal(moved, copy)


def test_lists_and_tuples_arrive_as_they_were() -> None:
    blocks = Blocks(2, 6 + 44 + 24 + 3 * 64)
    block = Block(blocks, blocks.free.popleft())
    alike = block.empty((1, 1, 3, 1, 2), dtype=torch.uint8).random_()
    rows, noise = block.empty((1, 1, 11)).normal_(), block.empty((1, 1, 3, 1, 2)).normal_()
    outside = torch.randn(2)
    sent = [RawViews(alike, rows, noise), RawViews(alike.flip(-1), rows[..., 3:]), (outside, None)]
    (first, second, (third, nothing)) = arrived(block.filled(sent))
    assert isinstance(first, RawViews) and isinstance(second, RawViews)
    storages = {x.untyped_storage().data_ptr() for x in (*first, second.rows)}
    assert len(storages) == 1 != second.views.untyped_storage().data_ptr() not in storages
    for got, want in zip(
        (*first, *second[:2], third), (*sent[0], *sent[1][:2], outside), strict=True
    ):
        assert torch.equal(got, want) and got.dtype == want.dtype
    assert second.noise is nothing is None
    alike.fill_(3)
    assert first.views.unique().tolist() == [3]  # written in place, not copied
    assert all(x.data_ptr() % 64 == 0 for x in first)
    del first
    assert list(blocks.free) == [1]  # of the second a part
    del second
    assert list(blocks.free) == [1, 0]


def test_what_has_no_room_in_a_block_is_sent_beside_it() -> None:
    blocks = Blocks(1, 48)
    block = Block(blocks, blocks.free.popleft())
    large, small = block.empty((10**5,)).fill_(2), block.empty((5,)).fill_(3)
    got = arrived(block.filled((large, small)))
    assert got[0].eq(2).all() and got[1].eq(3).all() and not blocks.free
    del got
    assert list(blocks.free) == [0]


def test_tensors_of_a_batch_outlive_their_loader() -> None:
    blocks = Blocks(3, 48)
    batch = one_batch(blocks)
    del blocks
    gc.collect()
    assert batch.fill_(4).sum() == 48
