"""Losses by name and by their settings."""

import pytest
import torch

from pretrain.config.loss import LossConfig
from pretrain.losses import CWRGPLoss, WhiteningLoss, WMSELoss, build_loss
from pretrain.losses.controls import BatchNormLoss, PlainLoss


@pytest.mark.parametrize("over", ["batch", "channels"])
@pytest.mark.parametrize("method", ["cholesky", "zca", "pca", "newton"])
def test_the_whole_family_can_be_built(over, method):
    config = LossConfig(name="whitening", over=over, method=method, sub_batch=8, groups=2)
    loss = build_loss(config)
    assert isinstance(loss, WhiteningLoss)
    assert loss.config == config


@pytest.mark.parametrize(
    ("name", "over", "kind"), [("w-mse", "batch", WMSELoss), ("cw-rgp", "channels", CWRGPLoss)]
)
def test_a_config_builds_the_public_loss_with_settings_beside_its_keywords(name, over, kind):
    beside = {"method": "newton", "newton_iterations": 3, "groups": 2, "random_partition": False}
    config = LossConfig(name=name, sub_batch=8, **beside)
    loss = build_loss(config)
    assert type(loss) is kind and loss.config == config
    x = torch.randn(2, 16, 32 if over == "channels" else 4)
    settings = config.model_dump(exclude={"name", "over", "covariance_batch", "covariance_weight"})
    same = build_loss(LossConfig(name="whitening", over=over, **settings))
    assert type(same) is kind
    order = torch.arange(16)[None]
    assert torch.equal(loss(x, batch_permutation=order), same(x, batch_permutation=order))


def test_controls_can_be_built():
    assert isinstance(build_loss(LossConfig(name="batch-norm")), BatchNormLoss)
    assert isinstance(build_loss(LossConfig(name="none")), PlainLoss)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WMSELoss(1), "sub_batch"),
        (lambda: WMSELoss(64, iterations=0), "iterations"),
        (lambda: WMSELoss(64, method="svd"), "method"),
        (lambda: WMSELoss(64, eps=-1.0), "eps"),
        (lambda: CWRGPLoss(64, 0), "groups"),
        (lambda: CWRGPLoss(64, 2, covariance_weight=-0.1), "covariance_weight"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
