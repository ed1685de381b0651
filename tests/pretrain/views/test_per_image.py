"""Views of images: shapes, statistics and values worked out by hand."""

from collections.abc import Callable

import pytest
import torch

from pretrain.config.data import AugmentConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import open_images
from pretrain.views.per_image import build_view, draw_views

PLAIN = AugmentConfig(
    size=8, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter_probability=0, grayscale=0
)


def test_a_view_without_randomness_is_the_normalised_image() -> None:
    image = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    view = build_view(PLAIN)(image)
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    assert view.shape == (3, 8, 8) and view.dtype == torch.float32
    assert torch.allclose(view, expected.view(3, 1, 1).expand(3, 8, 8))


def test_grayscale_blur_noise_and_rotation_do_what_they_say() -> None:
    torch.manual_seed(0)  # an angle near 0 would leave the corner as it is
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    unit = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    gray = build_view(PLAIN.model_copy(update={"grayscale": 1.0, **unit}))(image)
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray[1], gray[2])
    noisy = [
        build_view(PLAIN.model_copy(update={"noise_std": 0.1, **unit}))(image) for _ in range(50)
    ]
    assert float(torch.stack(noisy).std(0).mean()) == pytest.approx(0.1, rel=0.1)
    sharp = build_view(PLAIN.model_copy(update=unit))(image)
    blurred = build_view(
        PLAIN.model_copy(update={"blur_probability": 1.0, "blur_sigma": (2.0, 2.0), **unit})
    )
    assert float(blurred(image).std()) < 0.9 * float(sharp.std())
    turned = build_view(PLAIN.model_copy(update={"rotation_degrees": 45.0, **unit}))(image)
    assert float(turned[:, 0, 0].sum()) != float(sharp[:, 0, 0].sum())


def test_views_of_an_item_differ_and_are_reproducible(
    tiny: Callable[..., PretrainConfig],
) -> None:
    config = tiny()
    images, view = open_images(config.data), build_view(config.augment)
    before = torch.get_rng_state()
    first = draw_views(images, [(0, 4)], [view] * 3, 0)
    assert first.shape == (3, 1, 3, 32, 32)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, draw_views(images, [(0, 4)], [view] * 3, 0))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, draw_views(images, [(1, 4)], [view] * 3, 0))
