"""Jitter, grayscale, blur and solarisation of many views at once, each with settings of its own.

M views, S side; values between 0 and 1. Every op computes what torchvision's functional computes
for one float image; between ops nothing is rounded to whole bytes, as PIL would.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.runtime.device import to_device
from pretrain.views.parameters import (
    BLUR_SIGMA,
    BRIGHTNESS,
    CONTRAST,
    GRAYSCALE,
    HUE,
    ORDER,
    SATURATION,
    SOLARIZE,
)

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
ROUNDING = 1e-6  # a byte over 255 may come out so far below a threshold that is this byte
Op = Callable[[Tensor, Tensor], Tensor]


def jitter_and_gray(views: Tensor, rows: Tensor) -> Tensor:
    """Return `views [M, 3, H, W]` after the jitter and grayscale in `rows [M, 11]` (on the CPU).

    `views` may be changed in place.
    """
    order = rows[:, ORDER].long()
    for position in range(order.shape[1]):
        for op, function in _OPS.items():
            views = _where(order[:, position] == op, function, views, rows[:, op])
    chosen = rows[:, GRAYSCALE]
    return _where(
        chosen > 0, lambda some, _: some.copy_(to_gray(some).expand_as(some)), views, chosen
    )


def blur(views: Tensor, rows: Tensor, kernel_size: int) -> Tensor:
    """Return `views [M, 3, S, S]` after the blur in `rows [M, 11]` (on the CPU).

    `views` may be changed in place. `kernel_size` is the odd side of the blur's kernel.
    """
    sigma = rows[:, BLUR_SIGMA]
    return _where(sigma > 0, lambda x, s: gaussian_blur(x, s, kernel_size), views, sigma)


def solarize(views: Tensor, rows: Tensor) -> Tensor:
    """Return `views [M, 3, S, S]` after the solarisation in `rows [M, 11]` (on the CPU).

    `views` may be changed in place.
    """
    threshold = rows[:, SOLARIZE]
    return _where(threshold >= 0, invert_bright, views, threshold)


def adjust_brightness(views: Tensor, factor: Tensor) -> Tensor:
    """Return `views` times `factor [M]`, clipped; changes `views`."""
    return views.mul_(factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast(views: Tensor, factor: Tensor) -> Tensor:
    """Return `views` moved away from the mean of their gray by `factor [M]`; changes `views`."""
    factor = factor.view(-1, 1, 1, 1)
    mean = to_gray(views).mean((1, 2, 3), keepdim=True)
    return views.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation(views: Tensor, factor: Tensor) -> Tensor:
    """Return `views` moved away from their gray by `factor [M]`; changes `views`."""
    factor = factor.view(-1, 1, 1, 1)
    gray = to_gray(views).mul_(1 - factor)
    return views.mul_(factor).add_(gray).clamp_(0, 1)


def adjust_hue(views: Tensor, shift: Tensor) -> Tensor:
    """Return `views` with the hue moved by `shift [M]` of the full circle, as in HSV.

    With value v, chroma c and hue h in sixths of the circle, the channels are v - c + c f(h)
    with f(h) = |h - 3| - 1 for red, 2 - |h - 2| for green and 2 - |h - 4| for blue, each clipped.
    """
    red, green, blue = views.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    scale = chroma.clamp_min(1e-12).reciprocal_()
    is_red, is_green = value.clone().eq_(red), value.eq_(green)  # 0 or 1, many times as fast
    hue = (red - green).mul_(scale).add_(4)
    hue.lerp_((blue - red).mul_(scale).add_(2), is_green)
    hue.lerp_((green - blue).mul_(scale), is_red)
    hue.add_(6 * shift.view(-1, 1, 1) + 6).mul_(1 / 6).frac_().mul_(6)
    parts = (hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()
    for channel, part in zip((red, green, blue), parts, strict=True):
        torch.addcmul(low, chroma, part.clamp_(0, 1), out=channel)
    return views


def invert_bright(views: Tensor, threshold: Tensor) -> Tensor:
    """Return `views` with the values from `threshold [M]` on inverted."""
    return torch.where(views >= threshold.view(-1, 1, 1, 1) - ROUNDING, 1 - views, views)


def to_gray(views: Tensor) -> Tensor:
    """Return the gray of `views` as [M, 1, S, S]."""
    gray = views[:, 0:1] * GRAY_WEIGHTS[0]
    gray.add_(views[:, 1:2], alpha=GRAY_WEIGHTS[1])
    return gray.add_(views[:, 2:3], alpha=GRAY_WEIGHTS[2])


def gaussian_blur(views: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Return `views [M, 3, S, S]` blurred with `sigma [M]` pixels, reflected at the border."""
    half = kernel_size // 2
    if views.device.type != "cpu":
        return blur_by_convolution(views, blur_kernels(sigma, half))
    half = min(half, max(1, math.ceil(4 * float(sigma.max()))))  # less than 1e-4 lies beyond
    return blur_by_sums(views, blur_kernels(sigma, half))


def blur_kernels(sigma: Tensor, half: int) -> Tensor:
    """Return Gaussian weights [M, 2 half + 1] that sum to 1."""
    offsets = torch.arange(-half, half + 1, device=sigma.device, dtype=sigma.dtype)
    kernels = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)).square())
    return kernels / kernels.sum(1, keepdim=True)


def blur_by_convolution(views: Tensor, kernels: Tensor) -> Tensor:
    """Return `views` blurred with `kernels [M, K]` by two convolutions: for a GPU."""
    size = kernels.shape[1]
    channels = views.reshape(1, -1, *views.shape[2:])
    kernels, groups = kernels.repeat_interleave(3, dim=0), channels.shape[1]
    padded = F.pad(channels, [size // 2] * 4, mode="reflect")
    columns = F.conv2d(padded, kernels.view(groups, 1, size, 1), groups=groups)
    return F.conv2d(columns, kernels.view(groups, 1, 1, size), groups=groups).view_as(views)


def blur_by_sums(views: Tensor, kernels: Tensor) -> Tensor:
    """Return `views` blurred with `kernels [M, K]`, one tap after the other: for a CPU."""
    size = kernels.shape[1]
    height, width = views.shape[2:]
    padded = F.pad(views, [size // 2] * 4, mode="reflect")
    taps = kernels.T.reshape(size, -1, 1, 1, 1)
    columns = padded[:, :, :height] * taps[0]
    for tap in range(1, size):
        columns.addcmul_(padded[:, :, tap : tap + height], taps[tap])
    rows = columns[..., :width] * taps[0]
    for tap in range(1, size):
        rows.addcmul_(columns[..., tap : tap + width], taps[tap])
    return rows


def _where(chosen: Tensor, function: Op, views: Tensor, settings: Tensor) -> Tensor:
    """Return `views` with `function` done to those that `chosen [M]` (on the CPU) names."""
    if not chosen.any():
        return views
    if chosen.all():
        return function(views, to_device(settings.to(views.dtype), views.device))
    index = chosen.nonzero()[:, 0]
    settings = to_device(settings[index].to(views.dtype), views.device)
    index = to_device(index, views.device)
    return views.index_copy_(0, index, function(views[index], settings))


_OPS: dict[int, Op] = {
    BRIGHTNESS: adjust_brightness,
    CONTRAST: adjust_contrast,
    SATURATION: adjust_saturation,
    HUE: adjust_hue,
}
