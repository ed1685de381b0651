"""Learning rates and loss weights, worked out by hand."""

import math

import pytest

from pretrain.config.pretrain import OptimizerConfig, PretrainConfig
from pretrain.training.schedule import Length, covariance_weight, lr_factor

RUN = {
    "method": "cw-rgp",
    "data": {"name": "x", "root": "x"},
    "model": {"embedding_dim": 64},
    "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2, "covariance_weight": 0.01},
    "optimizer": {"lr": 1.0},
    "batch_size": 8,
    "epochs": 5,
}


def factors(length: Length, steps: list[int], **settings: object) -> list[float]:
    config = OptimizerConfig.model_validate({"lr": 1.0, "warmup_steps": 0, **settings})
    return [lr_factor(step, length, config) for step in steps]


def test_warm_up_then_cosine_to_the_end() -> None:
    length, settings = Length(12, 3), {"warmup_steps": 4, "schedule": "cosine"}
    assert factors(length, [0, 1, 2, 3, 4], **settings) == [0.25, 0.5, 0.75, 1.0, 1.0]
    half, late = factors(length, [8, 10], **settings)
    assert half == pytest.approx(0.5)
    assert late == pytest.approx((1 + math.cos(0.75 * math.pi)) / 2)


def test_a_cosine_ends_where_it_is_told_to() -> None:
    settings = {"schedule": "cosine", "final_rate": 0.1}
    assert factors(Length(10, 2), [0, 5, 10], **settings) == pytest.approx([1.0, 0.55, 0.1])
    by_epoch = factors(Length(10, 5), [4, 5, 9], **settings, lr_update="epoch")
    assert by_epoch == pytest.approx([1.0, 0.55, 0.55])


def test_fractions_of_the_run_and_a_constant_rate() -> None:
    found = factors(Length(1000, 10), [949, 950, 974, 975], schedule="step", drop_at=(0.95, 0.975))
    assert found == pytest.approx([1.0, 0.2, 0.2, 0.04])
    assert factors(Length(12, 3), [11], schedule="constant") == [1.0]


def test_w_mse_divides_by_five_50_and_25_epochs_before_the_end() -> None:
    per_epoch = 195  # CIFAR: 50,000 images in batches of 256
    steps = [950 * per_epoch - 1, 950 * per_epoch, 975 * per_epoch - 1, 975 * per_epoch]
    length = Length(1000 * per_epoch, per_epoch)
    found = factors(
        length, [499, 500, *steps], schedule="step", warmup_steps=500,
        drop_epochs_before_end=(50, 25), drop_factor=0.2,
    )  # fmt: skip
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.2, 0.2, 0.04])


def test_cw_rgp_on_imagenet_takes_a_cosine_of_whole_epochs() -> None:
    length = Length(200 * 2502, 2502)
    settings = {"schedule": "cosine", "lr_update": "epoch", "warmup_steps": 500}
    steps = [0, 499, 500, 2501, 2502, 5003, 100 * 2502, 200 * 2502 - 1]
    first = (1 + math.cos(math.pi / 200)) / 2
    last = (1 + math.cos(math.pi * 199 / 200)) / 2
    assert factors(length, steps, **settings) == pytest.approx(
        [1 / 500, 1.0, 1.0, 1.0, first, first, 0.5, last]
    )


def test_length_leaves_out_what_fills_no_batch() -> None:
    config = PretrainConfig.model_validate(RUN)
    length = Length.of(config, num_images=31)
    assert length == Length(total_steps=15, steps_per_epoch=3)
    assert [length.epoch_start(step) for step in (0, 2, 3, 14)] == [0, 0, 3, 12]


def test_the_covariance_term_outlasts_its_epochs_by_a_step_as_published() -> None:
    # the published loop sets the weight to 0 after the first step of the epoch that ends it
    length = Length(total_steps=15, steps_per_epoch=3)
    for extra, weights in (
        ({"covariance_epochs": 2}, [0.01, 0.01, 0.01, 0.0, 0.0]),
        ({"covariance_epochs": 2, "covariance_extra_steps": 0}, [0.01, 0.01, 0.0, 0.0, 0.0]),
        ({}, [0.01] * 5),
    ):
        config = PretrainConfig.model_validate(RUN | extra)
        assert [covariance_weight(step, length, config) for step in (0, 5, 6, 7, 14)] == weights
