"""Random parameters of views: torchvision's distributions."""

import math
from random import Random

import pytest
import torch
from torchvision.transforms import v2

from pretrain.config.data import AugmentConfig
from pretrain.views.parameters import (
    BLUR_SIGMA,
    GRAYSCALE,
    HUE,
    NEUTRAL,
    NUM_COLUMNS,
    ORDER,
    SOLARIZE,
    draw_colour,
    draw_crop,
    draw_view,
    reduced,
    reduction,
)

NO_OP = (*NEUTRAL, -1.0, -1.0, -1.0, -1.0, 0.0, 0.0, -1.0)


def test_crops_lie_in_the_image_and_have_torchvisions_distribution() -> None:
    config = AugmentConfig(crop_scale=(0.2, 1.0))
    chance, image = Random(0), torch.empty(3, 90, 120)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8, scale=(0.2, 1.0))
    theirs = [crop.make_params([image]) for _ in range(4000)]
    want = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in theirs]).float()
    got = torch.tensor([draw_crop(chance, 90, 120, config) for _ in range(4000)]).float()
    assert bool((got >= 0).all())
    assert int((got[:, 0] + got[:, 2]).max()) <= 90 and int((got[:, 1] + got[:, 3]).max()) <= 120
    error = want.std(0) / math.sqrt(4000)
    assert bool(((got.mean(0) - want.mean(0)).abs() < 5 * error).all())
    assert torch.allclose(got.std(0), want.std(0), rtol=0.06)


def test_a_crop_that_cannot_fit_is_the_largest_in_the_middle() -> None:
    config = AugmentConfig(crop_scale=(1.0, 1.0))
    assert draw_crop(Random(0), 100, 400, config) == (0, 133, 100, 133)
    assert draw_crop(Random(0), 400, 100, config) == (133, 0, 133, 100)


def test_colour_draws_have_the_recipes_probabilities_and_ranges() -> None:
    config = AugmentConfig(
        jitter=(0.4, 0.3, 0.2, 0.1), jitter_probability=0.8, grayscale=0.1,
        blur_probability=0.5, blur_sigma=(0.1, 2.0), flip=0.25, solarize=0.2,
    )  # fmt: skip
    chance, n = Random(0), 4000
    rows = torch.tensor([draw_colour(chance, config) for _ in range(n)])
    assert rows.shape == (n, NUM_COLUMNS)
    jittered = rows[:, ORDER][:, 0] >= 0
    for share, want in (
        (jittered, 0.8), (rows[:, GRAYSCALE] > 0, 0.1), (rows[:, BLUR_SIGMA] > 0, 0.5),
        (rows[:, SOLARIZE] > 0, 0.2),
    ):  # fmt: skip
        assert float(share.float().mean()) == pytest.approx(want, abs=0.03)
    assert torch.equal(rows[~jittered, :8], torch.tensor([NO_OP[:8]]).expand(n, 8)[~jittered])
    for op, strength in enumerate(config.jitter):
        moved = rows[jittered, op] - NEUTRAL[op]
        assert float(moved.abs().max()) == pytest.approx(strength, rel=0.01)
        assert float(moved.std()) == pytest.approx(strength / math.sqrt(3), rel=0.04)
    orders = {tuple(row) for row in rows[jittered][:, ORDER].long().tolist()}
    assert len(orders) == 24 and all(sorted(order) == [0, 1, 2, 3] for order in orders)
    flips = [draw_view(chance, 9, 9, config).flip for _ in range(n)]
    assert sum(flips) / n == pytest.approx(0.25, abs=0.03)


def test_solarisation_is_drawn_last_and_without_it_nothing_is() -> None:
    without, with_it = Random(5), Random(5)
    plain = draw_colour(without, AugmentConfig())
    row = draw_colour(with_it, AugmentConfig(solarize=1.0))
    assert (plain[SOLARIZE], row[SOLARIZE]) == (-1, 128 / 255)
    assert plain[:SOLARIZE] == row[:SOLARIZE]
    without.random()  # the one draw more
    assert without.random() == with_it.random()


def test_an_op_without_strength_is_never_drawn_and_factors_stay_above_zero() -> None:
    config = AugmentConfig(jitter=(1.5, 0.4, 0.0, 0.0), jitter_probability=1.0)
    rows = torch.tensor([draw_colour(Random(seed), config) for seed in range(500)])
    assert set(rows[:, ORDER].flatten().tolist()) == {-1.0, 0.0, 1.0}
    assert 0 <= float(rows[:, 0].min()) < 0.02 and float(rows[:, 0].max()) > 2.4
    assert bool((rows[:, HUE] == 0).all())


@pytest.mark.parametrize("size", [1, 24, 96, 224])
def test_no_crop_of_a_reduced_image_is_smaller_than_a_view(size: int) -> None:
    factors = set()
    for seed in range(400):
        chance = Random(seed)
        height, width = (chance.randrange(size, 25 * size + 9) for _ in range(2))
        views = [draw_view(chance, height, width, AugmentConfig(size=size)) for _ in range(3)]
        factor = reduction(views, size)
        factors.add(factor)
        smaller = [reduced(view, factor) for view in views]
        least = min(min(view.height, view.width) for view in smaller)
        assert factor == 1 or least >= size
        assert factor == 8 or min(min(v.height, v.width) for v in views) // (2 * factor) < size
        for view, box in zip(views, smaller, strict=True):
            assert box.top + box.height <= height // factor  # whole pixels that the image has
            assert box.left + box.width <= width // factor
            for side in ("top", "left", "height", "width"):
                assert 0 <= getattr(view, side) - factor * getattr(box, side) < factor
            assert (view.angle, view.flip, view.colour) == (box.angle, box.flip, box.colour)
    assert factors == {1, 2, 4, 8}
