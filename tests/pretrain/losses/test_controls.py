"""The controls: BatchNorm only, and no whitening."""

import pytest
import torch

from pretrain.config.loss import LossConfig
from pretrain.losses import build_loss
from pretrain.losses.controls import BatchNormLoss, PlainLoss


def test_controls_by_name():
    assert type(build_loss(LossConfig(name="none"))) is PlainLoss
    assert type(build_loss(LossConfig(name="batch-norm"))) is BatchNormLoss


def test_controls_by_hand():
    x = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[4.0, 3.0], [5.0, 0.0]]], dtype=torch.float64)
    plain = build_loss(LossConfig(name="none"))
    assert plain(x).item() == pytest.approx(((2 - 2 * 24 / 25) + 2) / 2)
    euclidean = build_loss(LossConfig(name="none", normalize=False))
    assert euclidean(x).item() == pytest.approx((1 + 1 + 25 + 4) / 4)
    # two samples: BatchNorm gives +-1 in every channel; here the views have opposite signs in both
    standard = build_loss(LossConfig(name="batch-norm", eps=1e-9))
    flipped = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[4.0, 1.0], [5.0, 6.0]]]).double()
    assert standard(flipped).item() == pytest.approx(4.0)
    assert plain.regularized_count == standard.regularized_count == 0


def test_batch_norm_control_is_batch_norm(embeddings):
    x = embeddings(2, 16, 6).requires_grad_()
    loss = build_loss(LossConfig(name="batch-norm", normalize=False))
    a, b = (torch.nn.functional.batch_norm(v, None, None, training=True) for v in x)
    torch.testing.assert_close(loss(x), (a - b).square().mean())
    assert torch.autograd.gradcheck(loss, x)


@pytest.mark.parametrize("name", ["batch-norm", "none"])
def test_controls_refuse_a_batch_of_one_and_bear_constant_embeddings(name):
    loss = build_loss(LossConfig(name=name))
    with pytest.raises(ValueError, match="batch of 1 images; use at least 2"):
        loss(torch.randn(2, 1, 4))
    x = torch.full((2, 8, 4), 3.7, requires_grad=True)
    loss(x).backward()
    assert x.grad.isfinite().all()
