"""Batches of views with colours changed for many at once, in the loader or on the device.

V views, N images, M = V N, S side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import rotate

from pretrain.config.data import AugmentConfig
from pretrain.data.images import ImageArrays, Images
from pretrain.runtime.device import to_device
from pretrain.runtime.rng import derived_seed
from pretrain.views.colour import blur, jitter_and_gray, solarize
from pretrain.views.parameters import (
    NUM_COLUMNS,
    ViewParams,
    draw_view,
    reduced,
    reduction,
)

CPU_VALUES = 2**17  # changed at once on a CPU: small enough for its caches


class RawViews(NamedTuple):
    """Views to be finished: uint8 `[V, N, 3, S, S]`, rows `[V, N, 11]`, and noise for each pixel.

    The noise is drawn with the views, on the CPU: a GPU would draw another.
    """

    views: Tensor
    rows: Tensor
    noise: Tensor | None = None


def cut_views(
    images: Images, chosen: list[tuple[int, int]], num_views: int, seed: int, config: AugmentConfig
) -> RawViews:
    """Return the views of the images in `chosen`, given as pairs of epoch and index.

    Each image is decoded once; what is drawn for it depends on (seed, epoch, index) alone. Colours
    that come before the crop are changed here, for as many images of one size at once as follow
    each other and fit the caches.
    """
    views = torch.empty(num_views, len(chosen), 3, config.size, config.size, dtype=torch.uint8)
    rows = torch.empty(num_views, len(chosen), NUM_COLUMNS)
    noise = torch.empty(views.shape) if config.noise_std else None
    params: list[list[ViewParams]] = []  # of the images read so far

    def read(place: tuple[int, int]) -> Tensor:
        image_seed = derived_seed(seed, *place, 3)
        image, drawn = read_and_draw(images, place[1], num_views, image_seed, config)
        if noise is not None:
            generator = torch.Generator().manual_seed(image_seed)
            part = noise[:, len(params)]
            part.copy_(torch.randn(part.shape, generator=generator))
        rows[:, len(params)] = torch.tensor([view.colour for view in drawn])
        params.append(drawn)
        return image

    start = 0
    for pixels in in_groups(map(read, chosen)):
        group = range(start, start + len(pixels))
        for v in range(num_views):
            coloured = pixels
            if config.colours_before_crop:
                whole = pixels.contiguous() / 255
                changed = jitter_and_gray(whole, rows[v, group.start : group.stop])
                coloured = changed.mul_(255).round_().to(torch.uint8)
            for n, image in zip(group, coloured, strict=True):
                views[v, n] = cut_view(image, params[n][v], config)
        start = group.stop
    return RawViews(views, rows, noise)


def read_and_draw(
    images: Images, index: int, num_views: int, image_seed: int, config: AugmentConfig
) -> tuple[Tensor, list[ViewParams]]:
    """Return image `index`, reduced if its views allow and the config asks for it, and its views.

    What is drawn is the same, reduced or not; the views' boxes are in pixels of what is returned.
    """

    def draw(height: int, width: int) -> list[ViewParams]:
        chance = Random(image_seed)
        return [draw_view(chance, height, width, config) for _ in range(num_views)]

    if config.decoding == "full" or isinstance(images, ImageArrays):
        image = images.read(index)
        return image, draw(*image.shape[1:])
    drawn: list[ViewParams] = []

    def factor_for(height: int, width: int) -> int:
        drawn[:] = draw(height, width)
        return reduction(drawn, config.size)

    image, factor = images.read_reduced(index, factor_for)
    return image, [reduced(view, factor) for view in drawn]


def in_groups(images: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield consecutive images of one size as [n, 3, H, W], with up to `CPU_VALUES` values."""
    group: list[Tensor] = []
    for image in images:
        full = (len(group) + 1) * image.numel() > CPU_VALUES
        if group and (full or image.shape != group[0].shape):
            yield _stacked(group)
            group = []
        group.append(image)
    if group:
        yield _stacked(group)


def _stacked(group: list[Tensor]) -> Tensor:
    """Return the images as [n, 3, H, W]; one alone stays where it is, pixel after pixel."""
    return torch.stack(group) if len(group) > 1 else group[0].unsqueeze(0)


def cut_view(image: Tensor, params: ViewParams, config: AugmentConfig) -> Tensor:
    """Return the part of `image [3, H, W]` that `params` name as uint8 `[3, S, S]`."""
    if params.angle:
        image = rotate(image, params.angle, interpolation=InterpolationMode.BILINEAR)
    rows = slice(params.top, params.top + params.height)
    part = image[:, rows, params.left : params.left + params.width].unsqueeze(0)
    part = part.contiguous(memory_format=torch.channels_last)  # several times as fast
    size = (config.size, config.size)
    view: Tensor = F.interpolate(part, size, mode=config.interpolation, antialias=True)[0]
    return view.flip(-1) if params.flip else view


def finish_views(raw: RawViews, config: AugmentConfig) -> Tensor:
    """Return `raw` with the rest of its colours, noise, and normalised: float32, on its device."""
    V, N = raw.views.shape[:2]
    flat, rows = raw.views.flatten(0, 1), raw.rows.flatten(0, 1)
    step = len(flat)
    if flat.device.type == "cpu":
        step = max(1, CPU_VALUES // flat[0].numel())
    scale = 1 / torch.tensor(config.std)
    constants = torch.stack([scale, -torch.tensor(config.mean) * scale]).view(2, 3, 1, 1)
    scale, bias = to_device(constants, flat.device)
    finished = torch.empty(flat.shape, device=flat.device)
    if get_worker_info() is not None:
        finished.share_memory_()  # type: ignore[no-untyped-call]  # else copied when it is sent
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        views = torch.mul(flat[part], 1 / 255, out=finished[part])
        if not config.colours_before_crop:
            views = jitter_and_gray(views, rows[part])
        views = solarize(blur(views, rows[part], config.blur_kernel), rows[part])
        torch.addcmul(bias, views, scale, out=finished[part])
    finished = finished.view(V, N, *finished.shape[1:])
    if raw.noise is not None:
        finished.addcmul_(raw.noise, config.noise_std * scale)
    return finished
