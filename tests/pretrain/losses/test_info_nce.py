"""InfoNCE and SimCLR by hand, against lightly's, and what they are invariant to."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from pretrain.config.methods import SimCLRConfig
from pretrain.losses import build_loss
from pretrain.losses.info_nce import info_nce


def simclr(temperature=0.5):
    return build_loss(SimCLRConfig(name="simclr", temperature=temperature))


def test_by_hand():
    # two images with orthogonal views: cosine 1 to the other view, 0 to both of the other image
    x = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    want = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert simclr()(x).item() == pytest.approx(want, abs=1e-12)
    # the second image's second view is opposite: cosine -1, still orthogonal to the first image
    flipped = torch.stack([x[0], x[1] * torch.tensor([[1.0], [-1.0]])])
    other = -math.log(math.exp(-2) / (math.exp(-2) + 2))
    assert simclr()(3 * flipped).item() == pytest.approx((want + other) / 2, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.07])
def test_equals_lightlys_in_value_and_gradient(embeddings, temperature):
    lightly = pytest.importorskip("lightly.loss")
    x = embeddings(2, 24, 10).requires_grad_()
    values = simclr(temperature)(x), lightly.NTXentLoss(temperature)(*x)
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(value, x)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_more_views_are_the_mean_over_pairs(embeddings):
    x = embeddings(4, 12, 6)
    pairs = [simclr()(x[[a, b]]) for a, b in combinations(range(4), 2)]
    torch.testing.assert_close(simclr()(x), torch.stack(pairs).mean())


def test_info_nce_is_cross_entropy_with_the_positive_first():
    generator = torch.Generator().manual_seed(0)
    positive = 30 * torch.randn(5, generator=generator).double()
    negatives = 30 * torch.randn(5, 7, generator=generator).double()
    logits = torch.cat([positive[:, None], negatives], 1)
    want = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(info_nce(positive, negatives), want)


def test_gradcheck(embeddings):
    assert torch.autograd.gradcheck(simclr(0.2), embeddings(3, 5, 4).requires_grad_())


def test_lengths_do_not_matter(embeddings):
    x = embeddings(2, 12, 6)
    lengths = torch.logspace(-5, 5, 24, dtype=torch.float64).view(2, 12, 1)
    torch.testing.assert_close(simclr()(x * lengths), simclr()(x))


def test_a_vector_without_direction_has_no_gradient(embeddings):
    x = embeddings(2, 6, 4)
    x[1, 2] = 0
    x.requires_grad_()
    simclr()(x).backward()
    assert x.grad[1, 2].abs().max() == 0 and x.grad.isfinite().all()
