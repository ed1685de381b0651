"""The loader: from images to batches of views on the training device.

V views, N images, S side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import Images
from pretrain.data.workers import plain_faults
from pretrain.runtime.cpu import keep_freed_memory
from pretrain.runtime.rng import derived_seed, epoch_order
from pretrain.runtime.signals import leave_signals_to_parent
from pretrain.views.batched import RawViews, cut_views, finish_views
from pretrain.views.per_image import build_view

__all__ = ["ViewLoader", "ViewsDataset", "derived_seed", "epoch_order"]
Place = tuple[int, int]  # epoch and index


class ViewsDataset(Dataset[Tensor]):
    """Several random views of each image: item (epoch, index) is `[V, 3, S, S]` float32.

    The randomness of an item comes from (seed, epoch, index) alone, so neither the number of
    workers nor a resumed run changes what is drawn.
    """

    def __init__(
        self, images: Images, view: Callable[[Tensor], Tensor], num_views: int, seed: int
    ) -> None:
        self.images = images
        self.view = view
        self.num_views = num_views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: Place) -> Tensor:
        image = self.images.read(place[1])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, *place, 1))
            return torch.stack([self.view(image) for _ in range(self.num_views)])


class BatchedViewsDataset(Dataset[Any]):
    """Whole batches at once: float32 `[V, N, 3, S, S]`, or raw for the device to finish."""

    def __init__(self, images: Images, config: PretrainConfig) -> None:
        self.images = images
        self.config = config

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, places: list[Place]) -> Tensor | RawViews:
        """Return the batch of the images at `places`."""
        config = self.config
        raw = cut_views(self.images, places, config.num_views, config.seed, config.augment)
        return finish_views(raw, config.augment) if config.augment.colours == "in_loader" else raw


class _Places:
    """The sampler: batches of places, exchanged between epochs while the workers live on."""

    def __init__(self) -> None:
        self.batches: list[list[Place]] = []

    def __iter__(self) -> Iterator[list[Place]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class ViewLoader:
    """Yields views on the device; its workers are started once and serve every epoch."""

    def __init__(self, config: PretrainConfig, images: Images, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.places = _Places()
        by_view = config.augment.colours == "by_view"
        view = build_view(config.augment)
        self.loader: DataLoader[Any] = DataLoader(
            ViewsDataset(images, view, config.num_views, config.seed)
            if by_view
            else BatchedViewsDataset(images, config),
            batch_sampler=self.places,
            num_workers=config.data.num_workers,
            collate_fn=None if by_view else _as_it_is,
            pin_memory=device.type == "cuda",
            persistent_workers=config.data.num_workers > 0,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # leaves the run's own random numbers alone
        )

    def batches(self, epoch: int, indices: list[list[int]]) -> Iterator[Tensor]:
        """Yield views `[V, N, 3, S, S]` of the images of each batch in `indices`."""
        self.places.batches = [[(epoch, index) for index in batch] for batch in indices]
        for batch in plain_faults(self.loader):
            if isinstance(batch, RawViews):
                batch.views = batch.views.to(self.device, non_blocking=True)
                yield finish_views(batch, self.config.augment)
            else:
                views: Tensor = batch.to(self.device, non_blocking=True)
                in_order = self.config.augment.colours != "by_view"
                yield views if in_order else views.transpose(0, 1)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    leave_signals_to_parent(number)
    keep_freed_memory()
