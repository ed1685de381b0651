"""VICReg by hand, against lightly's, and what it is invariant to."""

from itertools import combinations

import pytest
import torch

from pretrain.config.methods import VICRegConfig
from pretrain.losses.vicreg import VICRegLoss


def vicreg(**settings):
    return VICRegLoss(VICRegConfig(name="vicreg", **settings))


def only(term, **settings):
    weights = dict.fromkeys(("invariance_weight", "variance_weight", "covariance_weight"), 0.0)
    return vicreg(**(weights | {term: 1.0} | settings))


def test_each_term_by_hand():
    # view 1: both channels +-0.3, variance 0.18 of two images; view 2: constant
    view = torch.tensor([[0.3, 0.3], [-0.3, -0.3]], dtype=torch.float64)
    x = torch.stack([view, torch.zeros_like(view)])
    assert only("invariance_weight")(x).item() == pytest.approx(0.09)
    # the mean over both views, as in the authors' code: equation 6 has twice as much
    deviations = (0.18 + 0.01) ** 0.5, 0.01**0.5
    want = sum(1 - deviation for deviation in deviations) / 2
    assert only("variance_weight", eps=0.01)(x).item() == pytest.approx(want)
    # covariance 0.18 at two entries, over two channels; view 2 has none; the sum over both views
    assert only("covariance_weight")(x).item() == pytest.approx(2 * 0.18**2 / 2)
    assert only("covariance_weight")(torch.stack([view, view])).item() == pytest.approx(2 * 0.18**2)
    assert only("variance_weight")(10 * torch.stack([view, view])).item() == 0


@pytest.mark.parametrize("weights", [(25, 25, 1), (1, 0, 3), (0, 2, 0.5)])
@pytest.mark.parametrize("size", [(24, 10), (8, 20)])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_equals_lightlys_in_value_and_gradient(embeddings, weights, size, scale):
    lightly = pytest.importorskip("lightly.loss")
    x = (scale * embeddings(2, *size)).requires_grad_()
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    loss = vicreg(**dict(zip(names, weights, strict=True)))
    values = loss(x), lightly.VICRegLoss(*map(float, weights))(*x)
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(value, x)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_more_views_are_the_mean_over_pairs(embeddings):
    x = 0.4 * embeddings(4, 12, 6)
    pairs = [vicreg()(x[[a, b]]) for a, b in combinations(range(4), 2)]
    torch.testing.assert_close(vicreg()(x), torch.stack(pairs).mean())


def test_gradcheck(embeddings):
    x = (0.4 * embeddings(3, 6, 4)).requires_grad_()
    assert torch.autograd.gradcheck(vicreg(), x)


def test_offset_and_order_of_channels_do_not_matter(embeddings):
    x, order = 0.4 * embeddings(2, 24, 6), torch.randperm(6)
    for other in (x - 7, x[..., order]):
        torch.testing.assert_close(vicreg()(other), vicreg()(x))


def test_no_matrix_of_channels_by_channels_is_kept_for_the_backward_pass(embeddings):
    kept = []
    x = embeddings(4, 8, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        vicreg()(x).backward()
    assert max(kept) == 4 * 8 * 64 < 64 * 64
