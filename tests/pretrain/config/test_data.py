"""Settings of images and views: ranges that cannot be drawn from are refused, all at once."""

import pytest
from pydantic import ValidationError

from pretrain.config.data import AugmentConfig, DataConfig, ViewConfig


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


def test_each_view_has_the_shared_settings_but_for_its_own() -> None:
    config = AugmentConfig.model_validate(
        {"size": 96, "flip": 0.1, "views": [{"count": 2}, {"size": 32, "solarize": 0.2}]}
    )
    first, second, third = config.of_views(3)
    assert first == second == AugmentConfig(size=96, flip=0.1)
    assert third == AugmentConfig(size=32, flip=0.1, solarize=0.2)
    assert config.runs(3) == [(first, 2), (third, 1)]
    assert config.largest_size == 96 and third.blur_kernel == 5
    assert AugmentConfig(size=8).of_views(4) == [AugmentConfig(size=8)] * 4
    assert AugmentConfig(size=8).largest_size == 8
    small = AugmentConfig.model_validate({"views": [{"size": 24}, {"size": 40}]})
    assert small.largest_size == 40  # 224, which no view has, is none


def test_faults_of_a_view_are_named_with_its_place_and_shared_ones_once() -> None:
    views = [{"blur_sigma": (2, 1)}, {"crop_scale": (0.5, 0.2)}, {"jitter": (0, 0, 0, 0.6)}]
    with pytest.raises(ValidationError) as refused:
        AugmentConfig.model_validate({"crop_ratio": (0, 1), "blur_probability": 1, "views": views})
    text = str(refused.value)
    assert text.count("crop_ratio: 0 to 1") == 1 and "; crop_ratio" not in text
    for place, fault in enumerate(("blur_sigma: 2 to 1", "crop_scale: 0.5 to", "jitter: hue 0.6")):
        assert f"; views.{place}: {fault}" in text


def test_a_view_of_one_pixel_is_not_blurred() -> None:
    with pytest.raises(
        ValidationError, match=r"views\.1: blur_probability: a view of size 1 cannot"
    ):
        AugmentConfig.model_validate({"blur_probability": 0.5, "views": [{"size": 2}, {"size": 1}]})


@pytest.mark.parametrize("count", [1, 1025, 10**12])
def test_so_many_views_are_refused(count: int) -> None:
    with pytest.raises(ValidationError, match=f"views: {count} described, wanted 2 to 1024"):
        AugmentConfig.model_validate({"views": [{"count": count}]})


@pytest.mark.parametrize("key", ["colours", "decoding", "mean", "colours_before_crop", "views"])
def test_what_concerns_the_whole_image_or_backbone_is_shared(key: str) -> None:
    value = AugmentConfig().model_dump()[key]
    with pytest.raises(ValidationError, match=rf"views.0.{key}\s+Extra inputs"):
        AugmentConfig.model_validate({"views": [{key: value}, {}]})


def test_every_setting_that_is_drawn_can_be_a_views_own() -> None:
    of_view, shared = (
        model.model_json_schema()["properties"] for model in (ViewConfig, AugmentConfig)
    )
    assert of_view.keys() - {"count"} == shared.keys() - {
        "colours", "colours_before_crop", "decoding", "mean", "std", "views",
    }  # fmt: skip
    for name in of_view.keys() - {"count"}:
        values, nothing = of_view[name]["anyOf"]
        assert values.items() <= shared[name].items() and nothing == {"type": "null"}
