"""CW-RGP: the covariance term and the random partition."""

import doctest

import pytest
import torch

from pretrain.config.loss import LossConfig
from pretrain.losses import CWRGPLoss, build_loss, cw_rgp
from pretrain.losses.base import covariance_penalty


def test_gradcheck_with_the_covariance_term(embeddings):
    loss = CWRGPLoss(4, 2, iterations=2, covariance_weight=0.3)
    x = embeddings(3, 8, 12).requires_grad_()

    def value(x):
        return loss(x, generator=torch.Generator().manual_seed(2))

    assert torch.autograd.gradcheck(value, x)


def test_covariance_penalty_by_hand():
    # centred samples (1,-1), (2,-2): covariance 4/1 off the diagonal, twice, squared, over N = 2
    x = torch.tensor([[[5.0, 3.0], [2.0, -2.0]]], dtype=torch.float64)
    assert covariance_penalty(x).item() == pytest.approx((16 + 16) / 2)


def test_a_covariance_batch_takes_the_mean_over_parts_of_the_batch():
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = {"name": "cw-rgp", "sub_batch": 4, "groups": 2}
    given = {"batch_permutation": torch.arange(12)[None], "channel_partition": torch.tensor([])}
    without = build_loss(LossConfig(**settings))(x, **given)
    term = {"covariance_weight": 0.5, "covariance_batch": 6}
    loss = build_loss(LossConfig(**settings, **term))
    penalties = [covariance_penalty(x[:, :6]), covariance_penalty(x[:, 6:])]
    torch.testing.assert_close(loss(x, **given), without + 0.5 * sum(penalties) / 2)
    with pytest.raises(ValueError, match="batch of 8 images is not divisible by covariance_batch"):
        loss(x[:, :8])


@pytest.mark.parametrize(("groups", "sub_batch", "is_singular"), [
    (1, 15, False), (1, 16, True), (2, 7, False), (2, 8, False), (2, 9, True),
])  # fmt: skip
def test_covariances_are_singular_from_fewer_channels_than_images(
    embeddings, groups, sub_batch, is_singular
):
    loss = CWRGPLoss(sub_batch, groups)
    loss(embeddings(2, 2 * sub_batch, 16), generator=torch.Generator().manual_seed(0))
    assert loss.regularized_count == (2 * 2 * groups if is_singular else 0)


def test_a_small_covariance_beside_large_variances_does_not_cancel():
    # covariance 1e3 (1 - 0.999) / 3; the square of the first sample's variance, 2e6 / 3, holds
    # all digits of float32
    x = torch.tensor([[[1e3, -1e3, 0.0, 0.0], [1.0, 0.999, -1.0, -0.999]]])
    assert covariance_penalty(x).item() == pytest.approx((1 / 3) ** 2, rel=1e-3)


def test_draws_come_from_the_generator_and_differ_per_round_sub_batch_and_view(embeddings):
    x, loss = embeddings(2, 16, 32), CWRGPLoss(4, 2)
    first, again = (loss(x, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    generator = torch.Generator().manual_seed(7)
    state = torch.get_rng_state()
    values = [loss(x, generator=generator).item() for _ in range(4)]
    assert len(set(values)) == 4
    assert torch.equal(torch.get_rng_state(), state)
    drawn = loss._partition(x, None, generator).reshape(-1, 32)
    assert len({tuple(order.tolist()) for order in drawn}) == len(drawn) == 4 * 2
    assert torch.equal(drawn.sort(-1).values, torch.arange(32).expand(8, 32))


def test_an_empty_partition_keeps_channels_in_order(embeddings):
    x = embeddings(2, 4, 16)
    in_order = torch.arange(16).expand(1, 1, 2, 16)
    loss = CWRGPLoss(4, 2)
    torch.testing.assert_close(
        loss(x, channel_partition=torch.empty(0)), loss(x, channel_partition=in_order)
    )


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(cw_rgp)
    assert result.attempted and not result.failed
