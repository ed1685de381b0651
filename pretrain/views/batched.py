"""Batches of views with colours changed for many at once, in the loader or on the device.

V views, N images, M = V N, S side.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import rotate

from pretrain.config.data import AugmentConfig
from pretrain.data.images import Images
from pretrain.runtime.rng import derived_seed
from pretrain.views.colour import change_colours
from pretrain.views.parameters import NUM_COLUMNS, ViewParams, draw_view

CPU_VALUES = 2**17  # changed at once on a CPU: small enough for its caches


class RawViews(NamedTuple):
    """Views before their colours: uint8 `[V, N, 3, S, S]`, rows `[V, N, 10]`, seeds `[N]`."""

    views: Tensor
    rows: Tensor
    seeds: Tensor


def cut_views(
    images: Images, chosen: list[tuple[int, int]], num_views: int, seed: int, config: AugmentConfig
) -> RawViews:
    """Return the views of the images in `chosen`, given as pairs of epoch and index.

    Each image is decoded once; what is drawn for it depends on (seed, epoch, index) alone.
    """
    views = torch.empty(num_views, len(chosen), 3, config.size, config.size, dtype=torch.uint8)
    rows = torch.empty(num_views, len(chosen), NUM_COLUMNS)
    seeds = torch.empty(len(chosen), dtype=torch.int64)
    for n, (epoch, index) in enumerate(chosen):
        image = images.read(index)
        seeds[n] = derived_seed(seed, epoch, index, 3)
        chance = Random(int(seeds[n]))
        height, width = image.shape[1:]
        params = [draw_view(chance, height, width, config) for _ in range(num_views)]
        for v, view in enumerate(params):
            views[v, n] = cut_view(image, view, config)
        rows[:, n] = torch.tensor([view.colour for view in params])
    return RawViews(views, rows, seeds)


def cut_view(image: Tensor, params: ViewParams, config: AugmentConfig) -> Tensor:
    """Return the part of `image [3, H, W]` that `params` name as uint8 `[3, S, S]`."""
    if params.angle:
        image = rotate(image, params.angle, interpolation=InterpolationMode.BILINEAR)
    rows = slice(params.top, params.top + params.height)
    part = image[:, rows, params.left : params.left + params.width].unsqueeze(0)
    size = (config.size, config.size)
    view: Tensor = F.interpolate(part, size, mode=config.interpolation, antialias=True)[0]
    return view.flip(-1) if params.flip else view


def finish_views(raw: RawViews, config: AugmentConfig) -> Tensor:
    """Return `raw` with its colours changed, noise added and normalised: float32, on its device."""
    V, N = raw.views.shape[:2]
    flat, rows = raw.views.flatten(0, 1), raw.rows.flatten(0, 1)
    step = len(flat)
    if flat.device.type == "cpu":
        step = max(1, CPU_VALUES // flat[0].numel())
    mean = torch.tensor(config.mean, device=flat.device).view(3, 1, 1)
    scale = 1 / torch.tensor(config.std, device=flat.device).view(3, 1, 1)
    bias = -mean * scale
    finished = torch.empty(flat.shape, device=flat.device)
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        views = torch.mul(flat[part], 1 / 255, out=finished[part])
        views = change_colours(views, rows[part], config.blur_kernel)
        torch.addcmul(bias, views, scale, out=finished[part])
    finished = finished.view(V, N, *finished.shape[1:])
    if config.noise_std:
        generator = torch.Generator(finished.device)
        for n, seed in enumerate(raw.seeds.tolist()):
            generator.manual_seed(seed)
            views = finished[:, n]
            noise = torch.randn(views.shape, generator=generator, device=views.device)
            views.addcmul_(noise, config.noise_std * scale)
    return finished
