"""The random parameters of a view, drawn ahead of the work on its pixels.

The distributions are those of torchvision's RandomResizedCrop, RandomRotation,
RandomHorizontalFlip, ColorJitter, RandomGrayscale, GaussianBlur and RandomSolarize; drawing them
costs microseconds, so that colours can be changed for many views at once, wherever they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from pretrain.config.data import AugmentConfig

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of a colour row, and the ops' numbers
ORDER = slice(4, 8)  # the ops in the order in which they are applied, -1 where there is none
GRAYSCALE, BLUR_SIGMA = 8, 9
SOLARIZE = 10  # the threshold, -1 for a view that is not solarised
NUM_COLUMNS = 11
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
CROP_TRIES = 10


@dataclass(frozen=True)
class ViewParams:
    """One view: how it is cut out, and its row of colour settings."""

    angle: float
    top: int
    left: int
    height: int
    width: int
    flip: bool
    colour: tuple[float, ...]


def draw_view(chance: Random, height: int, width: int, config: AugmentConfig) -> ViewParams:
    """Return the next view of an image of `height` x `width` pixels."""
    angle = uniform(chance, -config.rotation_degrees, config.rotation_degrees)
    box = draw_crop(chance, height, width, config)
    flip = chance.random() < config.flip
    return ViewParams(angle, *box, flip, draw_colour(chance, config))


def reduction(views: list[ViewParams], size: int) -> int:
    """Return the largest of 8, 4, 2 and 1 that leaves every crop `size` pixels or more."""
    least = min(side for view in views for side in (view.height, view.width))
    return next((factor for factor in (8, 4, 2) if least // factor >= size), 1)


def reduced(view: ViewParams, factor: int) -> ViewParams:
    """Return `view` in whole pixels of the image that is reduced by `factor`, rounded down."""
    box = {name: getattr(view, name) // factor for name in ("top", "left", "height", "width")}
    return replace(view, **box)


def draw_crop(
    chance: Random, height: int, width: int, config: AugmentConfig
) -> tuple[int, int, int, int]:
    """Return top, left, height and width; after ten misfits the largest central crop."""
    low, high = (math.log(ratio) for ratio in config.crop_ratio)
    for _ in range(CROP_TRIES):
        area = height * width * uniform(chance, *config.crop_scale)
        ratio = math.exp(uniform(chance, low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return below(chance, height - h + 1), below(chance, width - w + 1), h, w
    ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_colour(chance: Random, config: AugmentConfig) -> tuple[float, ...]:
    """Return a row of `NUM_COLUMNS` numbers for the functions of `pretrain.views.colour`."""
    factors, order = list(NEUTRAL), [-1.0] * 4
    if chance.random() < config.jitter_probability:
        ops = [op for op, strength in enumerate(config.jitter) if strength]
        for position in range(len(ops)):
            other = position + below(chance, len(ops) - position)
            ops[position], ops[other] = ops[other], ops[position]
            order[position] = float(ops[position])
        for op, strength in enumerate(config.jitter):
            least = -math.inf if op == HUE else 0.0
            factors[op] += uniform(chance, max(least - factors[op], -strength), strength)
    gray = float(chance.random() < config.grayscale)
    blurred = chance.random() < config.blur_probability
    sigma = uniform(chance, *config.blur_sigma) if blurred else 0.0
    solarized = config.solarize and chance.random() < config.solarize  # 0 draws as it always did
    threshold = config.solarize_threshold if solarized else -1.0
    return (*factors, *order, gray, sigma, threshold)


def uniform(chance: Random, low: float, high: float) -> float:
    """Return a number between `low` and `high`."""
    return low + (high - low) * chance.random()


def below(chance: Random, limit: int) -> int:
    """Return a whole number from 0 to `limit - 1`."""
    return min(int(chance.random() * limit), limit - 1)
