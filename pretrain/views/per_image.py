"""Views drawn one after the other, by transforms of torchvision.transforms.v2.

V views, N images, S side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from pretrain.config.data import AugmentConfig
from pretrain.data.images import Images
from pretrain.runtime.device import Views
from pretrain.runtime.rng import derived_seed
from pretrain.views.colour import ROUNDING


def build_view(config: AugmentConfig) -> v2.Transform:
    """Return the transform `[3, H, W] uint8 -> [3, size, size] float32, normalised`.

    Order and parameters follow the SimCLR/MoCo v2 recipe (crop, flip, jitter, grayscale, blur), or
    with `colours_before_crop` that of W-MSE (jitter, grayscale, crop, flip, blur); rotation,
    solarisation (after the blur, as BYOL's) and noise are off unless asked for.
    """
    steps = [*_colours(config), *_geometry(config)]
    if not config.colours_before_crop:
        steps = [*_geometry(config), *_colours(config)]
    if config.blur_probability:
        blur = v2.GaussianBlur(config.blur_kernel, sigma=config.blur_sigma)
        steps.append(v2.RandomApply([blur], p=config.blur_probability))
    if config.solarize:
        threshold = 255 * (config.solarize_threshold - ROUNDING)
        steps.append(v2.RandomSolarize(threshold, p=config.solarize))
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if config.noise_std:
        steps.append(v2.GaussianNoise(sigma=config.noise_std, clip=False))
    steps.append(v2.Normalize(config.mean, config.std))
    return v2.Compose(steps)


def _geometry(config: AugmentConfig) -> list[nn.Module]:
    """Return rotation, crop and flip."""
    steps: list[nn.Module] = []
    if config.rotation_degrees:
        steps.append(
            v2.RandomRotation(config.rotation_degrees, interpolation=InterpolationMode.BILINEAR)
        )
    steps.append(
        v2.RandomResizedCrop(
            config.size,
            scale=config.crop_scale,
            ratio=config.crop_ratio,
            interpolation=InterpolationMode(config.interpolation),
            antialias=True,
        )
    )
    if config.flip:
        steps.append(v2.RandomHorizontalFlip(config.flip))
    return steps


def _colours(config: AugmentConfig) -> list[nn.Module]:
    """Return jitter and grayscale."""
    steps: list[nn.Module] = []
    if config.jitter_probability and any(config.jitter):
        jitter = v2.ColorJitter(*config.jitter)
        steps.append(v2.RandomApply([jitter], p=config.jitter_probability))
    if config.grayscale:
        steps.append(v2.RandomGrayscale(config.grayscale))
    return steps


def draw_views(
    images: Images,
    chosen: list[tuple[int, int]],
    transforms: Sequence[Callable[[Tensor], Tensor]],
    seed: int,
) -> Views:
    """Return a view by each of `transforms` of the images in `chosen`, pairs of epoch and index.

    Float32 `[V, N, 3, S, S]`, or where sizes differ `[N, 3, S, S]` for each view. What is drawn for
    an image depends on (seed, epoch, index) alone.
    """
    batch = []
    for epoch, index in chosen:
        image = images.read(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, epoch, index, 1))
            batch.append([transform(image) for transform in transforms])
    views = [torch.stack(view) for view in zip(*batch, strict=True)]
    return torch.stack(views) if len({view.shape for view in views}) == 1 else tuple(views)
