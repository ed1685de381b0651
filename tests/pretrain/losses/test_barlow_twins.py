"""Barlow Twins by hand, against lightly's, and what it is invariant to."""

from itertools import combinations

import pytest
import torch

from pretrain.config.methods import BarlowTwinsConfig
from pretrain.losses.barlow_twins import BarlowTwinsLoss
from pretrain.losses.base import standardized


def barlow_twins(**settings):
    return BarlowTwinsLoss(BarlowTwinsConfig(name="barlow-twins", **settings))


def test_by_hand():
    # two images, both channels alike: all four correlations are 1, or -1 against the other sign
    view = torch.tensor([[3.0, 1.0], [-3.0, -1.0]], dtype=torch.float64)
    loss = barlow_twins(redundancy_weight=0.1, eps=1e-12)
    assert loss(torch.stack([view, view])).item() == pytest.approx(0.1 * 2)
    assert loss(torch.stack([view, -view])).item() == pytest.approx(2 * 4 + 0.1 * 2)
    # orthogonal channels of unit variance that agree between views: nothing to lose
    apart = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    assert loss(torch.stack([apart, 5 * apart + 2])).item() == pytest.approx(0, abs=1e-12)
    half = barlow_twins(redundancy_weight=0.1, eps=1e-12, scale=0.5)
    assert half(torch.stack([view, -view])).item() == pytest.approx(4.1)


@pytest.mark.parametrize("weight", [0.0051, 0.008, 2.0])
@pytest.mark.parametrize("size", [(24, 10), (8, 20)])
def test_equals_lightlys_in_value_and_gradient(embeddings, weight, size):
    lightly = pytest.importorskip("lightly.loss")
    x = embeddings(2, *size).requires_grad_()
    values = barlow_twins(redundancy_weight=weight)(x), lightly.BarlowTwinsLoss(weight)(*x)
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(value, x)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_more_views_are_the_mean_over_pairs(embeddings):
    x = embeddings(4, 12, 6)
    pairs = [barlow_twins()(x[[a, b]]) for a, b in combinations(range(4), 2)]
    torch.testing.assert_close(barlow_twins()(x), torch.stack(pairs).mean())


def test_gradcheck(embeddings):
    x = embeddings(3, 6, 4).requires_grad_()
    assert torch.autograd.gradcheck(barlow_twins(redundancy_weight=0.3, scale=0.7), x)


def test_scale_and_offset_of_channels_and_their_order_do_not_matter(embeddings):
    x, loss = embeddings(2, 24, 6), barlow_twins(eps=1e-12)
    factors = torch.linspace(0.1, 50, 6, dtype=torch.float64)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    for other in (x * factors, x - 5 * factors, x[..., order]):
        torch.testing.assert_close(loss(other), loss(x))


def test_standardised_is_batch_norm_without_its_affine_part(embeddings):
    x = embeddings(2, 16, 6)
    want = [torch.nn.BatchNorm1d(6, affine=False).double()(view) for view in x]
    torch.testing.assert_close(standardized(x, 1e-5), torch.stack(want))


def test_no_matrix_of_channels_by_channels_is_kept_for_the_backward_pass(embeddings):
    kept = []
    x = embeddings(4, 8, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        barlow_twins()(x).backward()
    assert max(kept) == 4 * 8 * 64 < 64 * 64
