"""The views of an image, decoded once per sample, and the order in which an epoch visits them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.images import Images


def derived_seed(*parts: int) -> int:
    """Return a 63-bit seed from (seed, epoch, index, ...), the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def epoch_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """Return the permutation of `num_images` that belongs to (seed, epoch)."""
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
    return torch.randperm(num_images, generator=generator).tolist()


class ViewsDataset(Dataset[Tensor]):
    """Several random views of each image: item `[V, 3, size, size]` float32.

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
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images.read(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, self.epoch, index, 1))
            return torch.stack([self.view(image) for _ in range(self.num_views)])
