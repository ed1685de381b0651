"""Copies for which nobody waits, seen on a GPU without values; a CPU's are plain ones."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from pretrain.runtime.device import (
    HostCopy,
    beside_the_steps,
    image_parts,
    to_device,
    views_to_device,
)
from tests.fake_cuda import CUDA, fake_cuda

CPU = torch.device("cpu")


def test_on_a_cpu_nothing_is_copied() -> None:
    x = torch.arange(3)
    assert to_device(x, CPU) is x
    assert HostCopy(x).tolist() == [0, 1, 2]
    batches = [torch.ones(1), torch.zeros(1)]
    assert all(a is b for a, b in zip(beside_the_steps(iter(batches), CPU), batches, strict=True))


def test_no_copy_to_a_gpu_or_from_it_is_waited_for() -> None:
    notes: list[str] = []
    with fake_cuda(notes) as gpu:
        there = to_device(torch.arange(3), CUDA)
        assert there.device == CUDA and to_device(there, CUDA) is there
        back = HostCopy(there)
        assert not gpu.waits and notes == ["steps: event"]
        assert back.tolist() == [1, 1, 1]
        assert not gpu.waits and notes[1:] == ["steps: host waits for the event"]
        torch.arange(3).to(CUDA)  # the control: from memory that is not pinned
        there.cpu()
        assert len(gpu.waits) == 2


def test_batches_are_made_beside_the_steps_which_wait_for_them() -> None:
    notes: list[str] = []

    def batches() -> Iterator[Tensor]:
        for _ in range(2):
            notes.append(f"made in {torch.cuda.current_stream().name}")  # type: ignore[attr-defined]
            yield torch.empty(2, device=CUDA)

    with fake_cuda(notes):
        for _ in beside_the_steps(batches(), CUDA):
            notes.append(f"step in {torch.cuda.current_stream().name}")  # type: ignore[attr-defined]
    of_each = ["made in beside", "steps: waits for beside", "kept for steps", "step in steps"]
    assert notes == 2 * of_each


def test_each_tensor_of_a_batch_is_kept_for_the_steps() -> None:
    notes: list[str] = []
    with fake_cuda(notes) as gpu:
        host = tuple(torch.ones(side).pin_memory() for side in (3, 2))
        for batch in beside_the_steps(map(partial(views_to_device, device=CUDA), [host]), CUDA):
            assert [view.device for view in batch] == [CUDA] * 2
        assert not gpu.waits
    assert notes == ["steps: waits for beside", *["kept for steps"] * 2]


def test_parts_of_a_batch_have_some_of_the_images_of_every_view() -> None:
    views = torch.arange(2 * 4 * 3).view(2, 4, 3, 1, 1)
    assert all(map(torch.equal, image_parts(views, 2), (views[:, :2], views[:, 2:])))
    differing = (views[0], views[1].expand(4, 3, 2, 2))
    first, last = image_parts(differing, 2)
    for part, images in ((first, slice(2)), (last, slice(2, 4))):
        assert isinstance(part, tuple)
        assert all(torch.equal(x, y[images]) for x, y in zip(part, differing, strict=True))
    (whole,) = image_parts(differing, 1)
    assert all(map(torch.equal, whole, differing))
