"""Views of the images, batch by batch, as this process of the run trains on them.

V views, N images of this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pretrain.augment import build_view
from pretrain.config import PretrainConfig
from pretrain.data import ViewsDataset, derived_seed, epoch_order, list_images
from pretrain.distributed import Processes
from pretrain.signals import leave_signals_to_parent


class Views(Protocol):
    """What the training loop asks of the data."""

    num_images: int

    def batches(self, epoch: int, first_step: int) -> Iterator[Tensor]:
        """Yield `[V, N, 3, H, W]` on the device for each step of `epoch` from `first_step` on.

        The images of a step and what is drawn for them follow from (seed, epoch, step), so that a
        resumed run gets the same; a step's images are dealt to the ranks in rank order.
        """


def too_few_images(config: PretrainConfig, num_images: int) -> str | None:
    """Return why the images do not fill a batch, or None."""
    if num_images >= config.batch_size:
        return None
    return (
        f"{config.data.root}: {num_images} images are less than one batch of {config.batch_size}; "
        "lower batch_size or add images"
    )


def build_views(config: PretrainConfig, processes: Processes) -> Views:
    """Return the views of the config's images.

    Raises:
        ValueError: the images are missing or too few.
    """
    return _FolderViews(config, processes)


class _FolderViews:
    """Views of a folder's images, made on the CPU."""

    def __init__(self, config: PretrainConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        paths = list_images(config.data.root)
        self.dataset = ViewsDataset(
            paths, build_view(config.augment), config.num_views, config.seed
        )
        self.num_images = len(paths)
        if fault := too_few_images(config, self.num_images):
            raise ValueError(fault)

    def batches(self, epoch: int, first_step: int) -> Iterator[Tensor]:
        """Yield this rank's part of every global batch."""
        config, processes = self.config, self.processes
        self.dataset.epoch = epoch
        order = torch.tensor(epoch_order(self.num_images, config.seed, epoch))
        whole = self.num_images // config.batch_size * config.batch_size
        steps = order[:whole].view(-1, processes.size, config.batch_size // processes.size)
        loader = DataLoader(
            self.dataset,
            batch_sampler=steps[first_step:, processes.rank].tolist(),
            num_workers=config.data.num_workers,
            pin_memory=processes.device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator().manual_seed(
                derived_seed(config.seed, epoch, processes.rank, 4)
            ),
        )
        for batch in loader:
            yield batch.to(processes.device, non_blocking=True).transpose(0, 1)
