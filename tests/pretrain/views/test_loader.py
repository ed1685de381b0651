"""Batches of views: the same wherever and by however many workers."""

import multiprocessing
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import open_images
from pretrain.runtime.distributed import Processes
from pretrain.train import check_machine
from pretrain.views import ShardedViews, ViewLoader, loader_faults
from pretrain.views.loader import batch_bytes
from tests.fake_cuda import CUDA, fake_cuda

CPU = torch.device("cpu")
Make = Callable[..., PretrainConfig]
FULL = {
    "size": 24, "blur_probability": 0.5, "grayscale": 0.3, "noise_std": 0.1, "solarize": 0.3,
}  # fmt: skip


def in_batches(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def loaded(config: PretrainConfig, epoch: int, order: list[int], size: int) -> list[Tensor]:
    loader = ViewLoader(config, open_images(config.data), CPU)
    return list(loader.batches(epoch, in_batches(order, size)))


def with_colours(make: Make, colours: str, workers: int = 0, **augment: Any) -> PretrainConfig:
    config = make(augment={**FULL, **augment, "colours": colours}, num_views=3)
    data = config.data.model_copy(update={"num_workers": workers})
    return config.model_copy(update={"data": data})


@pytest.mark.parametrize("colours", ["by_view", "in_loader", "on_device"])
def test_batches_have_one_shape_and_depend_on_the_epoch(tiny: Make, colours: str) -> None:
    config = with_colours(tiny, colours)
    first, last = loaded(config, 0, [3, 1, 4, 1, 5], 3)
    assert first.shape == (3, 3, 3, 24, 24) and last.shape == (3, 2, 3, 24, 24)
    assert first.dtype == torch.float32
    assert torch.equal(first[:, 1], last[:, 0])  # image 1 of epoch 0, in another batch
    assert not torch.equal(first[0], first[1])
    again = loaded(config, 1, [3, 1, 4], 3)[0]
    assert not torch.equal(first, again)


def test_loader_and_device_draw_the_same_views(tiny: Make) -> None:
    order = list(range(12))
    in_loader = loaded(with_colours(tiny, "in_loader"), 2, order, 8)
    on_device = loaded(with_colours(tiny, "on_device"), 2, order, 8)
    assert [torch.equal(a, b) for a, b in zip(in_loader, on_device, strict=True)] == [True, True]


@pytest.mark.parametrize("colours", ["in_loader", "on_device"])
def test_workers_change_nothing_and_serve_several_epochs(tiny: Make, colours: str) -> None:
    config = with_colours(tiny, colours, workers=2)
    loader = ViewLoader(config, open_images(config.data), CPU)
    for epoch in (0, 1):
        got = list(loader.batches(epoch, in_batches([*range(20)], 8)))
        want = loaded(with_colours(tiny, colours), epoch, [*range(20)], 8)
        assert len(got) == 3
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    del loader


def test_an_epoch_left_early_does_not_leak_into_the_next(tiny: Make) -> None:
    config = with_colours(tiny, "in_loader", workers=2)
    loader = ViewLoader(config, open_images(config.data), CPU)
    next(iter(loader.batches(0, in_batches([*range(20)], 4))))
    (batch,) = loader.batches(1, [[7, 8]])
    assert torch.equal(batch, loaded(with_colours(tiny, "in_loader"), 1, [7, 8], 2)[0])


def test_the_loader_leaves_the_runs_random_numbers_alone(tiny: Make) -> None:
    before = torch.get_rng_state()
    for colours in ("by_view", "in_loader", "on_device"):
        loaded(with_colours(tiny, colours), 0, [1, 2], 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("colours", ["in_loader", "on_device"])
@pytest.mark.parametrize("sizes", [(24, 24, 24), (24, 16, 24)], ids=str)
def test_batches_that_are_kept_stay_as_they_came(
    tiny: Make, colours: str, sizes: tuple[int, ...]
) -> None:
    views = {"views": [{"size": size} for size in sizes]}
    config, plain = (with_colours(tiny, colours, workers, **views) for workers in (2, 0))
    order = [n % 20 for n in range(60)]
    kept: list[tuple[Any, int]] = []
    loader = ViewLoader(config, open_images(config.data), CPU)
    want = loaded(plain, 0, order, 2)
    for number, batch in enumerate(loader.batches(0, in_batches(order, 2))):
        if number % 3 == 0:
            kept.append((batch, number))
        elif number % 3 == 1:
            kept.append(([view[1:] for view in batch], number))
    for batch, number in kept:
        for got, view in zip(batch, want[number], strict=True):
            assert torch.equal(got, view[-len(got) :])


@pytest.mark.parametrize("colours", ["in_loader", "on_device"])
@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_workers_write_into_the_same_few_blocks(tiny: Make, colours: str, start: str) -> None:
    config = with_colours(tiny, colours, workers=2)
    loader = ViewLoader(config, open_images(config.data), CPU)
    loader.loader.multiprocessing_context = start
    order = [n % 20 for n in range(80)]
    want = loaded(with_colours(tiny, colours), 1, order, 2)
    next(loader.batches(0, in_batches(order, 2)))  # and leaves the epoch
    addresses = set()
    for got, views in zip(loader.batches(1, in_batches(order, 2)), want, strict=True):
        assert torch.equal(got, views)
        addresses.add(got.data_ptr())
    blocks = loader.tasks.dataset.blocks
    assert blocks is not None
    in_blocks = {blocks.block(number).data_ptr() for number in range(6)}
    if colours == "in_loader":
        assert addresses <= in_blocks  # never one more
    del got
    assert sorted(blocks.free) == [*range(6)]


def test_an_epoch_without_batches_leaves_room_for_the_next(tiny: Make) -> None:
    loader = ViewLoader(config := with_colours(tiny, "in_loader", 1), open_images(config.data), CPU)
    assert list(loader.batches(0, [])) == []
    blocks = loader.tasks.dataset.blocks
    assert blocks is not None and blocks.num_bytes > batch_bytes(config, config.batch_size)


def test_a_larger_batch_than_the_first_is_whole(tiny: Make) -> None:
    config = with_colours(tiny, "in_loader", workers=1)
    loader = ViewLoader(config, open_images(config.data), CPU)
    for epoch, size in enumerate((2, 12, 2)):
        got = list(loader.batches(epoch, [[*range(size)]] * 6))
        want = loaded(with_colours(tiny, "in_loader"), epoch, [*range(size)], size)[0]
        assert len(got) == 6 and all(torch.equal(batch, want) for batch in got)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_one_line(tiny: Make, workers: int) -> None:
    config = with_colours(tiny, "on_device", workers)
    (config.data.root / "07.png").write_bytes(b"no image")
    loader = ViewLoader(config, open_images(config.data), CPU)
    batches = loader.batches(0, [[1, 2], [7, 3]])
    assert next(batches).shape[1] == 2
    with pytest.raises(ValueError, match=r"\A\S*07\.png: not a readable image \([^\n]*\)\Z"):
        next(batches)


@pytest.mark.parametrize("colours", ["by_view", "in_loader", "on_device"])
def test_on_a_gpu_batches_are_made_beside_the_steps(
    tiny: Make, colours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # else nothing is pinned
    config, notes = with_colours(tiny, colours), list[str]()
    with fake_cuda(notes) as gpu:
        for batch in ViewLoader(config, open_images(config.data), CUDA).batches(0, [[1, 2], [3]]):
            assert batch.device == CUDA
            notes.append("step")
    assert notes == 2 * ["steps: waits for beside", "kept for steps", "step"]
    assert not gpu.waits


LEFT_OPEN: list[Any] = []  # still there when the process ends


def leave_open(config: PretrainConfig) -> None:
    loader = ViewLoader(config, open_images(config.data), CPU)
    LEFT_OPEN.extend((loader, next(loader.batches(0, [[1, 2]] * 20))))


def test_a_process_ends_that_leaves_its_workers_open(tiny: Make) -> None:
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=leave_open, args=(with_colours(tiny, "in_loader", 2),))
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == 0


IMAGENET = {"batch_size": 256, "num_views": 2, "loss": {"name": "w-mse", "sub_batch": 128}}


def needed(make: Make, **settings: Any) -> float:
    """Return the GB of shared memory that 16 workers ask for, of which there is none."""
    config = make(**IMAGENET, **settings)
    data = config.data.model_copy(update={"num_workers": 16, **settings.get("data", {})})
    (fault,) = loader_faults(config.model_copy(update={"data": data}))
    assert ("on_device" in fault) == (config.augment.colours == "in_loader")
    return float(fault.partition(" GB")[0].rpartition(" ")[2])


def test_shared_memory_is_that_of_all_batches_ahead(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert loader_faults(tiny(**IMAGENET)) == []  # no workers
    views = {"size": 224, "colours": "in_loader"}
    assert needed(tiny, augment=views) == 10.5
    assert needed(tiny, augment=views | {"colours": "by_view"}) == 10.5
    assert needed(tiny, augment=views | {"colours": "on_device"}) == 2.6
    assert needed(tiny, augment=views | {"colours": "on_device", "noise_std": 0.1}) == 13.1
    crops = {"views": [{}, {"size": 112, "noise_std": 0.1}]}
    assert needed(tiny, augment=views | crops) == 6.6  # five eighths
    in_bytes = views | crops | {"colours": "on_device"}
    assert needed(tiny, augment=in_bytes) == 2.9  # of 1 and of 5 bytes a value
    probe = {"every_epochs": 1}
    assert needed(tiny, augment={"views": [{"size": 224}, {"size": 8}]}, probe=probe) == 6.6
    probe = {"every_epochs": 1, "size": 224}
    assert needed(tiny, augment=views, probe=probe) == 11.8  # 256 images of uint8, beside it
    config = tiny(**IMAGENET, augment=views)
    data = config.data.model_copy(update={"num_workers": 4, "prefetch": 3})
    (fault,) = loader_faults(config.model_copy(update={"data": data}), 2, 4)
    assert "need 2.2 GB" in fault  # two of four processes here, of a quarter of the batch each
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=22 * 10**8))
    assert loader_faults(config.model_copy(update={"data": data}), 2, 4) == []


def test_a_run_says_so_before_it_starts_workers(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    config = with_colours(tiny, "in_loader", workers=2)
    with pytest.raises(ValueError, match=r"data\.num_workers 2, which hold data\.prefetch 2"):
        ShardedViews(config, Processes(CPU))
    assert check_machine(config.model_dump(mode="json")) == loader_faults(config) != []


def test_how_far_workers_read_ahead_changes_no_view(tiny: Make) -> None:
    config = with_colours(tiny, "in_loader", workers=2)
    data = config.data.model_copy(update={"prefetch": 7})
    other = config.model_copy(update={"data": data})
    assert other.identity() == config.identity()
    assert ViewLoader(other, open_images(data), CPU).loader.prefetch_factor == 7
    for pair in zip(*(loaded(each, 0, [*range(8)], 2) for each in (config, other)), strict=True):
        assert torch.equal(*pair)
