"""Images of a folder, decoded once per sample, and the order in which an epoch visits them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def list_images(root: Path) -> list[Path]:
    """Return every image file below `root`, sorted by relative path.

    Raises:
        ValueError: the folder is missing or holds no image.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; wanted a folder of images")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"{root}: no image found; wanted files ending in {sorted(IMAGE_SUFFIXES)}")
    return paths


def read_image(path: Path) -> Tensor:
    """Return the image as `[3, H, W]` uint8 RGB.

    Raises:
        ValueError: the file is not a whole image.
    """
    try:
        with Image.open(path) as image:
            pixels: Tensor = pil_to_tensor(image.convert("RGB"))
            return pixels
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from None


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
        self, paths: list[Path], view: Callable[[Tensor], Tensor], num_views: int, seed: int
    ) -> None:
        self.paths = paths
        self.view = view
        self.num_views = num_views
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = read_image(self.paths[index])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, self.epoch, index, 1))
            return torch.stack([self.view(image) for _ in range(self.num_views)])
