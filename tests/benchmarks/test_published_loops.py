"""The published loops against this package's losses."""

from functools import partial

import pytest
import torch

from benchmarks.published_loops import plain_loss, plain_whiten
from benchmarks.whitening import WhiteningCase
from pretrain.config.loss import LossConfig
from pretrain.losses import build_loss
from pretrain.whitening import whiten

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["w-mse", "cw-rgp"])
def test_the_plain_loop_computes_the_same_loss(name):
    # one group and one sub-batch: nothing is left to chance but the order of the images
    sizes = (64, 3, 8) if name == "w-mse" else (8, 3, 32)
    config = LossConfig(name=name, sub_batch=sizes[0], groups=1)
    x = WhiteningCase("", config, *sizes).embeddings(CPU).requires_grad_()
    plain, ours = plain_loss(x, config), build_loss(config)(x)
    torch.testing.assert_close(ours, plain)
    gradients = [torch.autograd.grad(loss, x)[0] for loss in (ours, plain)]
    assert (gradients[0] - gradients[1]).norm() <= 1e-3 * gradients[1].norm()


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("name", ["w-mse", "cw-rgp"])
def test_plain_whitening_is_whitening(name, eps):
    groups = {"w-mse": 1, "cw-rgp": 2}[name]
    config = LossConfig(name=name, sub_batch=8, groups=groups, eps=eps)
    x = torch.randn(24, 16) if name == "w-mse" else torch.randn(6, 32)
    ours = partial(whiten, over=config.over, method=config.method, groups=groups, eps=eps)
    torch.testing.assert_close(plain_whiten(x, config), ours(x), rtol=1e-3, atol=1e-4)


def test_plain_whitening_deals_channels_to_groups():
    config, x, order = LossConfig(name="cw-rgp", sub_batch=6, groups=2), *cw_rgp_part()
    got = plain_whiten(x, config, order.tolist())
    want = whiten(x, over="channels", method="zca", groups=2, partition=order)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def cw_rgp_part():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 32, generator=generator), torch.randperm(32, generator=generator)


@pytest.mark.parametrize("name", ["w-mse", "cw-rgp"])
def test_the_plain_loop_reorders_channels_only_where_they_are_dealt_at_random(name, monkeypatch):
    orders = []

    def spy(x, config, order=None):
        orders.append(order)
        return plain_whiten(x, config, order)

    monkeypatch.setattr("benchmarks.published_loops.plain_whiten", spy)
    config = LossConfig(name=name, sub_batch=8, groups=2 if name == "cw-rgp" else 1)
    plain_loss(torch.randn(2, 16, 6 if name == "w-mse" else 32), config)
    assert len(orders) == 4
    assert all((order is None) == (name == "w-mse") for order in orders)
