"""Colours changed for many views at once: each op against torchvision's for a single image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from pretrain.views import colour
from pretrain.views.parameters import (
    BLUR_SIGMA,
    GRAYSCALE,
    NEUTRAL,
    ORDER,
    SOLARIZE,
)

NO_OP = (*NEUTRAL, -1.0, -1.0, -1.0, -1.0, 0.0, 0.0, -1.0)


def some_views(count: int = 6, side: int = 24) -> Tensor:
    """Views with gray pixels, pure colours, black and white among them."""
    views = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    views[0, :, :4] = views[0, :1, :4]
    views[1] = views[1].round()
    views[2, :, :4], views[2, :, 4:8] = 0.0, 1.0
    return views


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (colour.adjust_brightness, tv.adjust_brightness, [0.0, 0.6, 1.0, 1.4, 1.8, 0.2]),
        (colour.adjust_contrast, tv.adjust_contrast, [0.0, 0.6, 1.0, 1.4, 1.8, 0.2]),
        (colour.adjust_saturation, tv.adjust_saturation, [0.0, 0.6, 1.0, 1.4, 1.8, 0.2]),
        (colour.adjust_hue, tv.adjust_hue, [-0.5, -0.1, 0.0, 0.05, 0.2, 0.5]),
    ],
)
def test_each_op_is_torchvisions_image_by_image(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], settings: list[float]
) -> None:
    views = some_views()
    want = torch.stack([theirs(x, s) for x, s in zip(views, settings, strict=True)])
    got = ours(views.clone(), torch.tensor(settings))
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kernel", [3, 7, 23])
def test_blur_is_torchvisions_image_by_image(kernel: int) -> None:
    views, sigmas = some_views(), [0.1, 0.4, 0.8, 1.2, 1.6, 2.0]
    want = torch.stack(
        [tv.gaussian_blur(x, [kernel] * 2, [s] * 2) for x, s in zip(views, sigmas, strict=True)]
    )
    sigma = torch.tensor(sigmas)
    got = colour.gaussian_blur(views, sigma, kernel)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)
    kernels = colour.blur_kernels(sigma, kernel // 2)
    got = colour.blur_by_convolution(views, kernels)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    got = colour.blur_by_sums(views, kernels)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


def test_solarisation_is_torchvisions_image_by_image() -> None:
    views, thresholds = some_views(), [0.0, 0.2, 128 / 255, 0.7, 0.9, 1.0]
    want = torch.stack([tv.solarize(x, t) for x, t in zip(views, thresholds, strict=True)])
    assert torch.equal(colour.invert_bright(views.clone(), torch.tensor(thresholds)), want)


def test_a_byte_at_the_threshold_is_inverted_whatever_the_rounding() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(256, 3, 16, 16)
    inverted = colour.invert_bright(torch.mul(bytes_, 1 / 255), torch.arange(256) / 255)
    want = torch.stack([tv.solarize(x, threshold) for threshold, x in enumerate(bytes_)])
    assert torch.equal((255 * inverted).round().byte(), want)


def test_rows_choose_the_solarised_views_and_their_thresholds() -> None:
    views = some_views(3)
    rows = torch.tensor([NO_OP] * 3)
    rows[1:, SOLARIZE] = torch.tensor([0.0, 0.5])
    got = colour.solarize(views.clone(), rows)
    assert torch.equal(got[0], views[0]) and torch.equal(got[1], 1 - views[1])
    assert torch.equal(got[2], tv.solarize(views[2], 0.5))


def test_rows_choose_ops_and_their_order_for_each_view() -> None:
    views = some_views(5)
    rows = torch.tensor([NO_OP] * 5)
    rows[1, :4] = torch.tensor([1.3, 0.7, 1.2, 0.05])
    rows[1, ORDER] = torch.tensor([2.0, 0.0, 3.0, 1.0])
    rows[2, :4] = torch.tensor([1.3, 0.7, 1.2, 0.05])
    rows[2, ORDER] = torch.tensor([1.0, 0.0, -1.0, -1.0])
    rows[3, GRAYSCALE] = 1.0
    rows[4, BLUR_SIGMA] = 1.0
    want = views.clone()
    x = tv.adjust_brightness(tv.adjust_saturation(views[1], 1.2), 1.3)
    want[1] = tv.adjust_contrast(tv.adjust_hue(x, 0.05), 0.7)
    want[2] = tv.adjust_brightness(tv.adjust_contrast(views[2], 0.7), 1.3)
    want[3] = tv.rgb_to_grayscale(views[3], num_output_channels=3)
    want[4] = tv.gaussian_blur(views[4], [5, 5], [1.0, 1.0])
    got = colour.blur(colour.jitter_and_gray(views.clone(), rows), rows, kernel_size=5)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)
    assert torch.equal(got[0], views[0])
    all_gray = colour.jitter_and_gray(views[3:4].clone(), rows[3:4])
    assert torch.equal(all_gray.mul_(1), got[3:4])  # memory of its own
