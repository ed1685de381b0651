"""Settings of images and views: ranges that cannot be drawn from are refused, all at once."""

import pytest
from pydantic import ValidationError

from pretrain.config.data import AugmentConfig, DataConfig


def test_ranges_that_cannot_be_drawn_are_named_with_their_numbers() -> None:
    content = {
        "crop_scale": (0.5, 0.2), "crop_ratio": (0, 1), "blur_sigma": (2, 1),
        "blur_probability": 0.5, "jitter": (0.4, 0.4, 0.4, 0.6),
    }  # fmt: skip
    with pytest.raises(ValidationError) as refused:
        AugmentConfig.model_validate(content)
    for fault in (
        "crop_scale: 0.5 to 0.2, wanted two numbers above 0 in rising order",
        "crop_ratio: 0 to 1, wanted",
        "blur_sigma: 2 to 1, wanted",
        "jitter: hue 0.6, wanted 0 to 0.5",
    ):
        assert fault in str(refused.value)
    with pytest.raises(ValidationError, match=r"crop_scale: 0\.5 to 1\.5"):
        AugmentConfig.model_validate({"crop_scale": (0.5, 1.5)})


def test_the_blurs_kernel_is_an_odd_tenth_of_the_view() -> None:
    assert [AugmentConfig(size=size).blur_kernel for size in (8, 32, 224)] == [3, 5, 23]


def test_reduced_decoding_is_refused_where_views_are_drawn_after_it() -> None:
    for colours in ("in_loader", "on_device"):
        AugmentConfig.model_validate({"decoding": "reduced", "colours": colours})
    with pytest.raises(ValidationError, match=r"decoding: reduced has no effect with colours by_v"):
        AugmentConfig.model_validate({"decoding": "reduced", "colours": "by_view"})


def test_formats_are_those_of_the_splits() -> None:
    with pytest.raises(ValidationError, match="'folder', 'imagefolder', 'cifar10'"):
        DataConfig.model_validate({"name": "x", "root": "x", "format": "lmdb"})
