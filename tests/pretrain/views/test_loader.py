"""Batches of views: the same wherever and by however many workers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import open_images
from pretrain.views import ViewLoader

CPU = torch.device("cpu")
Make = Callable[..., PretrainConfig]
FULL = {"size": 24, "blur_probability": 0.5, "grayscale": 0.3, "noise_std": 0.1}


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


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_one_line(tiny: Make, workers: int) -> None:
    config = with_colours(tiny, "on_device", workers)
    (config.data.root / "07.png").write_bytes(b"no image")
    loader = ViewLoader(config, open_images(config.data), CPU)
    batches = loader.batches(0, [[1, 2], [7, 3]])
    assert next(batches).shape[1] == 2
    with pytest.raises(ValueError, match=r"\A\S*07\.png: not a readable image \([^\n]*\)\Z"):
        next(batches)
