"""Draw scenes and crops of handwritten digits; pure numpy, the same pixels on every machine.

Letters: S side of a square picture in pixels, G side of an enlarged digit, h w of a tight box.
Pictures are uint8 [S, S, 3]; pixel (x, y) covers the square from (x, y) to (x + 1, y + 1).

Every item is drawn from its own generator, seeded by (seed, split, index), so any item can be
drawn alone and in any order. Only elementwise arithmetic decides a pixel (no image library), and
sines and cosines are rounded, so the pixels do not depend on the versions of Pillow or libm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEED = 0
SPLIT_CODES = {"split": 0, "scenes/train": 1, "scenes/val": 2, "unlabeled": 3}
SPLIT_CODES |= {"crops/train": 4, "crops/val": 5}

SCENE_SIZE = 128
CROP_SIZE = 48
MAX_DIGITS = 4
MAX_ELLIPSES = 5
MAX_CROP_ELLIPSES = 2
SCENE_DIGIT_SIDES = (20.0, 56.0)  # side of the rotated 8x8 grid
CROP_DIGIT_SIDES = (20.0, 40.0)  # 40 px turned by 12 degrees still fits into 48
CROP_SHIFT = 4  # a crop's digit is at most this far from the middle
MAX_ANGLE_DEGREES = 12.0
BACKGROUND_LEVELS = (0.05, 0.4)
ELLIPSE_LEVELS = (0.25, 0.6)
DIGIT_LEVELS = (0.6, 1.0)
INK_THRESHOLD = 0.45  # share of full ink (16) from which a pixel belongs to the mask; half opaque
INK_FADE = 0.4  # from no opacity to full, around the threshold: small holes of an 8 stay visible
MAX_BOX_OVERLAP = 0.05  # of the smaller box; masks never share a pixel
PLACING_TRIES = 30

_ENLARGE = 4
_GRID = 8

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Digits:
    """The source digits: `ink` [1797, G, G] enlarged to G = 32, in shares of full ink; `labels`."""

    ink: Floats
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PlacedDigit:
    """One digit in a scene: where its tight box begins, and its mask [h, w] within that box."""

    digit_index: int
    label: int
    x: int
    y: int
    mask: Mask

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width, height in pixels; right = left + width is outside."""
        height, width = self.mask.shape
        return self.x, self.y, width, height

    def scene_mask(self, size: int = SCENE_SIZE) -> Mask:
        """The mask in the whole scene, [size, size]."""
        full = np.zeros((size, size), dtype=bool)
        _, _, width, height = self.box
        full[self.y : self.y + height, self.x : self.x + width] = self.mask
        return full


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and its digits, in the order they were drawn."""

    image: Picture
    digits: tuple[PlacedDigit, ...]


@dataclass(frozen=True, eq=False)
class _Glyph:
    """A scaled and rotated digit: opacity [h, w], and where its mask's tight box lies in it."""

    alpha: Floats
    top: int
    left: int
    mask: Mask


def load_source_digits() -> Digits:
    """The 1,797 digits that scikit-learn ships, enlarged four times by cubic interpolation."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  (only needed to build)

    images, labels = load_digits(return_X_y=True)
    grid = np.asarray(images, dtype=np.float64).reshape(-1, _GRID, _GRID) / 16.0
    weights = _cubic_weights()
    return Digits(weights @ grid @ weights.T, np.asarray(labels, dtype=np.int64))


def split_digits(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Indices of training and validation digits: two thirds and one third of every class."""
    rng = item_generator("split", 0)
    train: list[int] = []
    val: list[int] = []
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = len(members) * 2 // 3
        train.extend(members[:cut].tolist())
        val.extend(members[cut:].tolist())
    return {"train": np.sort(train), "val": np.sort(val)}


def item_generator(split: str, index: int) -> np.random.Generator:
    """The generator of one item; independent of all other items."""
    return np.random.default_rng([SEED, SPLIT_CODES[split], index])


def draw_scene(digits: Digits, pool: NDArray[np.int64], split: str, index: int) -> Scene:
    """Scene `index` of "scenes/train" or "scenes/val": one to four digits taken from `pool`."""
    rng = item_generator(split, index)
    canvas = _background(rng, SCENE_SIZE)
    for _ in range(rng.integers(MAX_ELLIPSES + 1)):
        _paint_ellipse(rng, canvas)
    placed: list[PlacedDigit] = []
    taken = np.zeros((SCENE_SIZE, SCENE_SIZE), dtype=bool)
    for _ in range(rng.integers(1, MAX_DIGITS + 1)):
        digit_index = int(rng.choice(pool))
        color = rng.uniform(*DIGIT_LEVELS, 3)
        for _ in range(PLACING_TRIES):
            glyph = _make_glyph(rng, digits.ink[digit_index], SCENE_DIGIT_SIDES)
            height, width = glyph.mask.shape
            x = int(rng.integers(SCENE_SIZE - width + 1))
            y = int(rng.integers(SCENE_SIZE - height + 1))
            digit = PlacedDigit(digit_index, int(digits.labels[digit_index]), x, y, glyph.mask)
            if _fits(digit, placed, taken):
                _paint_glyph(canvas, glyph, x, y, color)
                taken |= digit.scene_mask()
                placed.append(digit)
                break
    return Scene(_to_bytes(canvas), tuple(placed))


def draw_crop(digits: Digits, digit_index: int, split: str, index: int) -> Picture:
    """Crop `index` of a split: one whole digit near the middle, [48, 48, 3]."""
    rng = item_generator(split, index)
    canvas = _background(rng, CROP_SIZE)
    for _ in range(rng.integers(MAX_CROP_ELLIPSES + 1)):
        _paint_ellipse(rng, canvas)
    color = rng.uniform(*DIGIT_LEVELS, 3)
    glyph = _make_glyph(rng, digits.ink[digit_index], CROP_DIGIT_SIDES)
    height, width = glyph.mask.shape
    shift_x, shift_y = rng.integers(-CROP_SHIFT, CROP_SHIFT + 1, 2).tolist()
    x = min(max((CROP_SIZE - width) // 2 + shift_x, 0), CROP_SIZE - width)
    y = min(max((CROP_SIZE - height) // 2 + shift_y, 0), CROP_SIZE - height)
    _paint_glyph(canvas, glyph, x, y, color)
    return _to_bytes(canvas)


def _cubic_weights() -> Floats:
    """Catmull-Rom weights [32, 8]; all are dyadic fractions, so the enlarged digits are exact."""
    position = (np.arange(_GRID * _ENLARGE) + 0.5) / _ENLARGE - 0.5
    distance = np.abs(position[:, None] - np.arange(_GRID)[None, :])
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1.0
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4.0 * distance + 2.0
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _make_glyph(rng: np.random.Generator, ink: Floats, sides: tuple[float, float]) -> _Glyph:
    """Scales and rotates a digit at random; beyond its border there is no ink."""
    side = rng.uniform(*sides)
    angle = math.radians(rng.uniform(-MAX_ANGLE_DEGREES, MAX_ANGLE_DEGREES))
    cos, sin = round(math.cos(angle), 6), round(math.sin(angle), 6)
    extent = math.ceil(side * (cos + abs(sin))) + 4
    offset = np.arange(extent) - (extent - 1) / 2
    step = len(ink) / side
    u = (offset[None, :] * cos + offset[:, None] * sin) * step + (len(ink) - 1) / 2
    v = (offset[:, None] * cos - offset[None, :] * sin) * step + (len(ink) - 1) / 2
    value = _sample(ink, u, v)
    alpha = np.clip((value - INK_THRESHOLD) / INK_FADE + 0.5, 0.0, 1.0)
    mask = value >= INK_THRESHOLD
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return _Glyph(alpha, top, left, mask[top : rows[-1] + 1, left : columns[-1] + 1])


def _sample(ink: Floats, u: Floats, v: Floats) -> Floats:
    """Bilinear samples of `ink` at columns `u` and rows `v`, zero outside."""
    padded = np.pad(ink, 1)
    limit = len(ink) + 0.999
    u, v = np.clip(u + 1, 0, limit), np.clip(v + 1, 0, limit)
    column, row = u.astype(np.int64), v.astype(np.int64)
    u, v = u - column, v - row
    upper = padded[row, column] * (1 - u) + padded[row, column + 1] * u
    lower = padded[row + 1, column] * (1 - u) + padded[row + 1, column + 1] * u
    result: Floats = upper * (1 - v) + lower * v
    return result


def _background(rng: np.random.Generator, size: int) -> Floats:
    """A dark picture that varies smoothly between 3x3 random colours."""
    knots = rng.uniform(*BACKGROUND_LEVELS, (3, 3, 3))
    position = np.linspace(0.0, 2.0, size)
    base = np.minimum(position.astype(np.int64), 1)
    share = position - base
    across = knots[:, base] * (1 - share)[None, :, None] + knots[:, base + 1] * share[None, :, None]
    result: Floats = (
        across[base] * (1 - share)[:, None, None] + across[base + 1] * share[:, None, None]
    )
    return result


def _paint_ellipse(rng: np.random.Generator, canvas: Floats) -> None:
    """Paints a filled ellipse of medium brightness; it may stick out of the picture."""
    size = len(canvas)
    x, y = rng.uniform(0, size, 2)
    semi_x, semi_y = rng.uniform(3, 12, 2)
    color = rng.uniform(*ELLIPSE_LEVELS, 3)
    grid = np.arange(size) + 0.5
    distance = ((grid[None, :] - x) / semi_x) ** 2 + ((grid[:, None] - y) / semi_y) ** 2
    canvas[distance <= 1] = color


def _paint_glyph(canvas: Floats, glyph: _Glyph, x: int, y: int, color: Floats) -> None:
    """Paints a glyph so that its mask's tight box begins at (x, y)."""
    top, left = y - glyph.top, x - glyph.left
    first_row, first_column = max(top, 0), max(left, 0)
    alpha = glyph.alpha[first_row - top : len(canvas) - top]
    alpha = alpha[:, first_column - left : len(canvas) - left, None]
    height, width = alpha.shape[:2]
    part = canvas[first_row : first_row + height, first_column : first_column + width]
    part += alpha * (color - part)


def _fits(digit: PlacedDigit, others: list[PlacedDigit], taken: Mask) -> bool:
    """Return whether no mask pixel is taken and no box overlaps by more than the limit."""
    x, y, width, height = digit.box
    if (taken[y : y + height, x : x + width] & digit.mask).any():
        return False
    for other in others:
        left, top, other_width, other_height = other.box
        shared_x = max(0, min(x + width, left + other_width) - max(x, left))
        shared_y = max(0, min(y + height, top + other_height) - max(y, top))
        smaller = min(width * height, other_width * other_height)
        if shared_x * shared_y > MAX_BOX_OVERLAP * smaller:
            return False
    return True


def _to_bytes(canvas: Floats) -> Picture:
    return np.rint(canvas * 255).astype(np.uint8)
