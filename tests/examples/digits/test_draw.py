"""Drawn scenes and crops: pinned pixels, tight boxes, true masks, disjoint digits."""

import hashlib
from itertools import combinations

import numpy as np
import pytest

from examples.digits.draw import (
    PlacedDigit,
    _fits,
    draw_crop,
    draw_scene,
    load_source_digits,
    split_digits,
)

# sha256 over the drawn arrays, before any encoder. A change means other data: raise the version.
GOLDEN_SCENES = "081d9beb73c479f7dddde77c854f518693ad8d889786b56f6409e2dc569b3238"
GOLDEN_CROPS = "431f91bbcab9bd1406ac10564e0ad25771cd0a76ba72758153061db22a4b840e"


@pytest.fixture(scope="module")
def digits():
    return load_source_digits()


@pytest.fixture(scope="module")
def pools(digits):
    return split_digits(digits.labels)


@pytest.fixture(scope="module")
def scenes(digits, pools):
    return [
        (split, draw_scene(digits, pools[split], f"scenes/{split}", index))
        for split in ("train", "val")
        for index in range(40)
    ]


def test_enlarging_keeps_a_digit_in_place(digits):
    from sklearn.datasets import load_digits

    small = load_digits().images / 16
    assert digits.ink.shape == (1797, 32, 32)
    # Catmull-Rom at 1/8 beside a grid point, by hand: f(1/8) from f(-1), f(0), f(1), f(2)
    weights = np.array([-49, 987, 93, -7]) / 1024
    row = small[:, 3, 2:6] @ weights
    column_above = small[:, 2, 2:6] @ weights, small[:, 4, 2:6] @ weights
    below = small[:, 5, 2:6] @ weights
    expected = np.stack([column_above[0], row, column_above[1], below], axis=1) @ weights
    assert digits.ink[:, 14, 14] == pytest.approx(expected, abs=1e-12)


def test_every_digit_is_in_exactly_one_split_two_thirds_of_each_class(digits, pools):
    together = np.concatenate([pools["train"], pools["val"]])
    assert np.array_equal(np.sort(together), np.arange(1797))
    for label in range(10):
        total = int((digits.labels == label).sum())
        assert (digits.labels[pools["train"]] == label).sum() == total * 2 // 3


def test_scene_pixels_are_pinned(scenes):
    total = hashlib.sha256()
    for _, scene in scenes:
        total.update(scene.image.tobytes())
        for digit in scene.digits:
            total.update(f"{digit.digit_index} {digit.label} {digit.box}".encode())
            total.update(digit.mask.tobytes())
    assert total.hexdigest() == GOLDEN_SCENES


def test_crop_pixels_are_pinned(digits, pools):
    total = hashlib.sha256()
    for split, pool in (("unlabeled", "train"), ("crops/train", "train"), ("crops/val", "val")):
        for index in range(30):
            total.update(draw_crop(digits, int(pools[pool][index]), split, index).tobytes())
    assert total.hexdigest() == GOLDEN_CROPS


def test_a_scene_drawn_alone_equals_the_one_drawn_in_line(digits, pools, scenes):
    alone = draw_scene(digits, pools["train"], "scenes/train", 17)
    assert np.array_equal(alone.image, scenes[17][1].image)
    assert not np.array_equal(alone.image, scenes[57][1].image)  # validation scene 17


def test_digits_come_from_their_split_with_their_label(digits, pools, scenes):
    for split, scene in scenes:
        assert 1 <= len(scene.digits) <= 4
        for digit in scene.digits:
            assert digit.digit_index in pools[split]
            assert digit.label == digits.labels[digit.digit_index]


def test_boxes_are_tight_and_inside(scenes):
    for _, scene in scenes:
        for digit in scene.digits:
            x, y, width, height = digit.box
            rows, columns = np.nonzero(digit.scene_mask())
            assert (columns.min(), rows.min()) == (x, y)
            assert (columns.max() + 1, rows.max() + 1) == (x + width, y + height)
            assert len(rows) == digit.mask.sum()  # nothing cut off at the border


def test_masks_share_no_pixel_and_boxes_hardly_overlap(scenes):
    for _, scene in scenes:
        assert sum(digit.scene_mask().astype(int) for digit in scene.digits).max() == 1
        for one, other in combinations(scene.digits, 2):
            cover = np.zeros((2, 128, 128), dtype=bool)
            for layer, (x, y, width, height) in zip(cover, (one.box, other.box), strict=True):
                layer[y : y + height, x : x + width] = True
            assert (cover[0] & cover[1]).sum() <= 0.05 * cover.sum(axis=(1, 2)).min()


def test_a_digit_fits_where_masks_are_apart_and_boxes_share_at_most_a_twentieth():
    full = np.ones((20, 20), dtype=bool)
    first = PlacedDigit(0, 0, 10, 10, full)
    without_corner = full.copy()
    without_corner[:4, :5] = False

    def fits(x, y, mask):
        return _fits(PlacedDigit(1, 1, x, y, mask), [first], first.scene_mask())

    assert fits(30, 10, full)  # side by side
    assert not fits(29, 29, full)  # one shared pixel
    assert fits(25, 26, without_corner)  # 5 x 4 of 400: just allowed
    without_corner[:4, :6] = False
    assert not fits(24, 26, without_corner)  # 6 x 4


def test_masks_lie_on_the_digits_and_shifted_masks_do_not(scenes):
    # half of a tint of at least 0.6 over a background of at least 0.05, in 255ths
    least = np.floor((0.5 * 0.6 + 0.5 * 0.05) * 255)
    for _, scene in scenes:
        for digit in scene.digits:
            mask = digit.scene_mask()
            inner = mask & ~_near(scene, digit)
            assert (scene.image[inner] >= least).all()
            shifted = np.roll(mask, 5, axis=1)
            assert (scene.image[shifted] < least).any()


def _near(scene, digit):
    """Pixels that a later digit's soft edge may have painted over: all of its surroundings."""
    near = np.zeros((128, 128), dtype=bool)
    later = scene.digits[scene.digits.index(digit) + 1 :]
    for x, y, width, height in (other.box for other in later):
        near[max(y - 6, 0) : y + height + 6, max(x - 6, 0) : x + width + 6] = True
    return near


def test_nothing_is_brighter_than_the_background_allows_without_ink(digits, pools):
    crop = draw_crop(digits, int(pools["train"][0]), "unlabeled", 0)
    assert crop.shape == (48, 48, 3)
    assert crop.dtype == np.uint8
    assert crop.max() >= 0.6 * 255
    assert crop.min() >= np.floor(0.05 * 255)
    assert crop[[0, -1]].max() <= np.ceil(0.6 * 255)


def test_the_largest_crop_digit_still_fits(digits, monkeypatch):
    monkeypatch.setattr("examples.digits.draw.CROP_DIGIT_SIDES", (39.99, 40.0))
    for index in range(200):
        crop = draw_crop(digits, index, "unlabeled", index)
        assert (crop.min(axis=2) >= 0.6 * 255).any()
