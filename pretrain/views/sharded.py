"""Views of the images, batch by batch, as this process of the run trains on them.

V views, N images of this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import open_images
from pretrain.runtime.distributed import Processes
from pretrain.views.loader import ViewLoader, epoch_order


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
    return _ImageViews(config, processes)


class _ImageViews:
    """Views of the images of any data format."""

    def __init__(self, config: PretrainConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        images = open_images(config.data)
        self.num_images = len(images)
        if fault := too_few_images(config, self.num_images):
            raise ValueError(fault)
        self.loader = ViewLoader(config, images, processes.device)

    def batches(self, epoch: int, first_step: int) -> Iterator[Tensor]:
        """Yield this rank's part of every global batch."""
        config, processes = self.config, self.processes
        order = torch.tensor(epoch_order(self.num_images, config.seed, epoch))
        whole = self.num_images // config.batch_size * config.batch_size
        steps = order[:whole].view(-1, processes.size, config.batch_size // processes.size)
        return self.loader.batches(epoch, steps[first_step:, processes.rank].tolist())
