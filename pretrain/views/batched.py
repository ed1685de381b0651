"""Batches of views with colours changed for many at once, in the loader or on the device.

V views, N images, M = V N, S side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import rotate

from pretrain.config.data import AugmentConfig
from pretrain.data.images import ImageArrays, Images
from pretrain.runtime.device import Views, to_device
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
Empty = Callable[..., Tensor]  # makes memory as torch.empty does


class RawViews(NamedTuple):
    """Views to be finished: uint8 `[V, N, 3, S, S]`, rows `[V, N, 11]`, and noise for each pixel.

    All have the same settings. A pixel's three bytes follow each other in memory, as they are cut
    out. The noise is drawn with the views, on the CPU: a GPU would draw another.
    """

    views: Tensor
    rows: Tensor
    noise: Tensor | None = None


def cut_views(
    images: Images,
    chosen: list[tuple[int, int]],
    num_views: int,
    seed: int,
    config: AugmentConfig,
    empty: Empty = torch.empty,
) -> list[RawViews]:
    """Return the views of the images in `chosen`, in the runs of `config.runs(num_views)`.

    `chosen` has pairs of epoch and index. Each image is decoded once; what is drawn for it depends
    on (seed, epoch, index) alone. Colours that come before the crop are changed here, for as many
    images of one size at once as follow each other and fit the caches.
    """
    settings, runs, N = config.of_views(num_views), config.runs(num_views), len(chosen)
    rows = empty((num_views, N, NUM_COLUMNS))
    raws: list[RawViews] = []
    views: list[Tensor] = []  # each `[N, 3, S, S]`, a part of its run
    for same, count in runs:
        by_pixel = empty((count, N, same.size, same.size, 3), dtype=torch.uint8)
        alike = by_pixel.permute(0, 1, 4, 2, 3)
        noise = empty(alike.shape) if same.noise_std else None
        raws.append(RawViews(alike, rows[len(views) : len(views) + count], noise))
        views += alike
    noises = [raw.noise for raw in raws if raw.noise is not None]
    params: list[list[ViewParams]] = []  # of the images read so far

    def read(place: tuple[int, int]) -> Tensor:
        image_seed = derived_seed(seed, *place, 3)
        image, drawn = read_and_draw(images, place[1], image_seed, settings)
        if noises:
            generator = torch.Generator().manual_seed(image_seed)
            for part in [noise[:, len(params)] for noise in noises]:
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
                views[v][n] = cut_view(image, params[n][v], settings[v])
        start = group.stop
    return raws


def read_and_draw(
    images: Images, index: int, image_seed: int, settings: Sequence[AugmentConfig]
) -> tuple[Tensor, list[ViewParams]]:
    """Return image `index`, reduced if its views allow and `settings` ask for it, and its views.

    What is drawn is the same, reduced or not; the views' boxes are in pixels of what is returned.
    """

    def draw(height: int, width: int) -> list[ViewParams]:
        chance = Random(image_seed)
        return [draw_view(chance, height, width, config) for config in settings]

    if settings[0].decoding == "full" or isinstance(images, ImageArrays):
        image = images.read(index)
        return image, draw(*image.shape[1:])
    drawn: list[ViewParams] = []

    def factor_for(height: int, width: int) -> int:
        drawn[:] = draw(height, width)
        pairs = zip(drawn, settings, strict=True)
        return min(reduction([view], config.size) for view, config in pairs)

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


def finish_batch(
    raws: Sequence[RawViews], config: AugmentConfig, empty: Empty | None = None
) -> Views:
    """Return all views of a batch, finished; `raws` are the runs of `config`."""
    empty = empty or partial(torch.empty, device=raws[0].views.device)
    runs = config.runs(sum(len(raw.views) for raw in raws))
    shapes = {raw.views.shape[1:] for raw in raws}
    if len(shapes) > 1:
        finished = [
            finish_views(raw, same, empty(raw.views.shape))
            for raw, (same, _) in zip(raws, runs, strict=True)
        ]
        return tuple(view for run in finished for view in run)
    whole = empty((sum(count for _, count in runs), *shapes.pop()))
    start = 0
    for raw, (same, count) in zip(raws, runs, strict=True):
        finish_views(raw, same, whole[start : start + count])
        start += count
    return whole


def finish_views(raw: RawViews, config: AugmentConfig, out: Tensor | None = None) -> Tensor:
    """Return `raw` with the rest of its colours, noise, and normalised: float32, on its device."""
    flat, rows = raw.views.flatten(0, 1), raw.rows.flatten(0, 1)
    step = len(flat)
    if flat.device.type == "cpu":
        step = max(1, CPU_VALUES // flat[0].numel())
    scale = 1 / torch.tensor(config.std)
    constants = torch.stack([scale, -torch.tensor(config.mean) * scale]).view(2, 3, 1, 1)
    scale, bias = to_device(constants, flat.device)
    whole = torch.empty(raw.views.shape, device=flat.device) if out is None else out
    finished = whole.flatten(0, 1)
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        views = torch.mul(flat[part], 1 / 255, out=finished[part])
        if not config.colours_before_crop:
            views = jitter_and_gray(views, rows[part])
        views = solarize(blur(views, rows[part], config.blur_kernel), rows[part])
        torch.addcmul(bias, views, scale, out=finished[part])
    if raw.noise is not None:
        whole.addcmul_(raw.noise, config.noise_std * scale)
    return whole
