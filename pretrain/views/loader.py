"""Batches of views on the training device, in the order and the share of this process.

V views, N images of this process, S side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig
from pretrain.data.images import Images, from_workers, open_images
from pretrain.data.shared_memory import (
    SHARED_MEMORY,
    Block,
    Blocks,
    num_batches,
    shared_memory_faults,
)
from pretrain.runtime.cpu import keep_freed_memory
from pretrain.runtime.device import Views, beside_the_steps, views_to_device
from pretrain.runtime.distributed import Processes
from pretrain.runtime.rng import epoch_order
from pretrain.runtime.signals import leave_signals_to_parent
from pretrain.views.batched import RawViews, cut_views, finish_batch
from pretrain.views.parameters import NUM_COLUMNS
from pretrain.views.per_image import build_view, draw_views

Place = tuple[int, int]  # epoch and index


class ViewsDataset(Dataset[Any]):
    """Whole batches at once: finished views, or raw ones for the device to finish.

    The views of an image are drawn from (seed, epoch, index) alone, so neither the number of
    workers nor a resumed run changes them.
    """

    def __init__(self, images: Images, config: PretrainConfig) -> None:
        self.images = images
        self.config = config
        self.transforms = [build_view(view) for view in config.augment.of_views(config.num_views)]
        self.blocks: Blocks | None = None  # made before workers start

    def __getitems__(self, task: tuple[list[Place], int | None]) -> Views | list[RawViews] | Block:
        """Return the batch of the images at these places, in the block of this number if any."""
        config, augment, (places, number) = self.config, self.config.augment, task
        if augment.colours == "by_view":
            return draw_views(self.images, places, self.transforms, config.seed)
        block = Block(self.blocks, number) if self.blocks and number is not None else None
        empty, in_loader = block.empty if block else torch.empty, augment.colours == "in_loader"
        raw_empty = torch.empty if in_loader else empty
        raws = cut_views(self.images, places, config.num_views, config.seed, augment, raw_empty)
        batch = finish_batch(raws, augment, empty) if in_loader else raws
        return block.filled(batch) if block else batch


class _Tasks:
    """The batches of an epoch, replaced while workers live; each goes out with a block's number."""

    def __init__(self, dataset: ViewsDataset) -> None:
        self.dataset = dataset
        self.batches: list[list[Place]] = []

    def __iter__(self) -> Iterator[Any]:
        for places in self.batches:
            blocks = self.dataset.blocks
            yield places, blocks.free.popleft() if blocks and blocks.free else None


class ViewLoader:
    """Yields views on the device; its workers are started once and serve every epoch."""

    def __init__(self, config: PretrainConfig, images: Images, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.tasks = _Tasks(ViewsDataset(images, config))
        self.loader: DataLoader[Any] = DataLoader(
            self.tasks.dataset,
            batch_sampler=self.tasks,
            num_workers=config.data.num_workers,
            prefetch_factor=config.data.prefetch_factor,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            persistent_workers=config.data.num_workers > 0,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # leaves the run's own random numbers alone
        )

    def batches(self, epoch: int, indices: list[list[int]]) -> Iterator[Views]:
        """Yield the views of the images of each batch in `indices`."""
        self.tasks.batches = [[(epoch, index) for index in batch] for batch in indices]
        config, dataset = self.config, self.tasks.dataset
        reusable = config.augment.colours != "by_view" and SHARED_MEMORY.is_dir()
        if dataset.blocks is None and config.data.num_workers and reusable:
            num_bytes = batch_bytes(config, max(map(len, indices), default=config.batch_size))
            dataset.blocks = Blocks(num_batches(config.data), num_bytes)
        return beside_the_steps(map(self._finished, from_workers(self.loader)), self.device)

    def _finished(self, batch: Any) -> Views:
        if self.config.augment.colours != "on_device":
            return views_to_device(batch, self.device)
        raws = [
            RawViews(
                raw.views.to(self.device, non_blocking=True),
                raw.rows,
                None if raw.noise is None else raw.noise.to(self.device, non_blocking=True),
            )
            for raw in batch
        ]
        return finish_batch(raws, self.config.augment)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    leave_signals_to_parent(number)
    keep_freed_memory()


def too_few_images(config: PretrainConfig, num_images: int) -> list[str]:
    """Return why the images do not fill a batch, or []."""
    if num_images >= config.batch_size:
        return []
    return [
        f"{config.data.root}: {num_images} images are less than one batch of {config.batch_size}; "
        "lower batch_size or add images"
    ]


def batch_bytes(config: PretrainConfig, num_images: int) -> int:
    """Return the bytes of a batch as a worker hands it over.

    It is float32, or with colours on the device uint8, a row a view, and perhaps noise's float32.
    """
    augment, total = config.augment, 0
    for view in augment.of_views(config.num_views):
        pixels = 3 * view.size**2
        on_device = pixels * (1 + 4 * bool(view.noise_std)) + 4 * NUM_COLUMNS
        total += num_images * (on_device if augment.colours == "on_device" else 4 * pixels)
    return total


def loader_faults(config: PretrainConfig, num_local: int = 1, num_processes: int = 1) -> list[str]:
    """Return why the workers of the `num_local` processes on this machine lack memory, or [].

    A probe on the way has workers of its own, beside the training's in the first process.
    """
    augment, batch = config.augment, batch_bytes(config, config.batch_size // num_processes)
    needed = num_local * num_batches(config.data) * batch
    if config.probe is not None:
        size = config.probe.size or augment.largest_size
        images = ProbeConfig.model_fields["batch_size"].default * 3 * size**2
        needed += num_batches(config.probe.data or config.data) * images
    remedy = ", or take augment.colours: on_device" if augment.colours == "in_loader" else ""
    return shared_memory_faults(needed, config.data, remedy)


class ShardedViews:
    """This rank's part of every global batch of the config's images.

    The images of a step and what is drawn for them follow from (seed, epoch, step), so that a
    resumed run gets the same; a step's images go to the ranks in rank order.

    Raises:
        ValueError: the images are missing or too few, or shared memory is.
    """

    def __init__(self, config: PretrainConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        images = open_images(config.data)
        self.num_images = len(images)
        num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if processes.size > 1 else 1
        faults = too_few_images(config, self.num_images)
        if faults := faults + loader_faults(config, num_local, processes.size):
            raise ValueError("; ".join(faults))
        self.loader = ViewLoader(config, images, processes.device)

    def batches(self, epoch: int, first_step: int) -> Iterator[Views]:
        """Yield views on the device for each step of `epoch` from `first_step` on."""
        config, processes = self.config, self.processes
        order = torch.tensor(epoch_order(self.num_images, config.seed, epoch))
        whole = self.num_images // config.batch_size * config.batch_size
        steps = order[:whole].view(-1, processes.size, config.batch_size // processes.size)
        return self.loader.batches(epoch, steps[first_step:, processes.rank].tolist())
