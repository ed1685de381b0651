"""SimSiam's and BYOL's losses by hand, against lightly's, and where vectors have no direction."""

from itertools import permutations

import pytest
import torch

from pretrain.config.methods import BYOLConfig, SimSiamConfig
from pretrain.losses import build_loss
from pretrain.losses.negative_cosine import mean_cosine
from tests.pretrain.losses.test_degenerate import CASE_NAMES, degenerate

SIMSIAM = build_loss(SimSiamConfig(name="simsiam"))
BYOL = build_loss(BYOLConfig(name="byol"))


def value_of(name, predictions, targets):
    if name == "simsiam":
        return SIMSIAM(targets, predictions=predictions)
    return BYOL(predictions, predictions=predictions, targets=targets)


def test_by_hand():
    """One image to (3, 4) and (5, 12) where (0, 1) and (1, 0) are the targets."""
    targets = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]], dtype=torch.float64).expand(2, 2, 2)
    predictions = torch.tensor([[[3.0, 4.0]], [[5.0, 12.0]]], dtype=torch.float64).expand(2, 2, 2)
    cosine = (3 / 5 + 12 / 13) / 2  # the first view's is compared with the second's target
    assert SIMSIAM(7 * targets, predictions=predictions).item() == pytest.approx(-cosine, abs=1e-12)
    value = BYOL(targets, predictions=predictions, targets=0.1 * targets)
    assert value.item() == pytest.approx(2 - 2 * cosine, abs=1e-12)


@pytest.mark.parametrize("V", [2, 3, 5])
def test_equals_lightlys_over_all_ordered_pairs_in_value_and_gradient(embeddings, V):
    lightly = pytest.importorskip("lightly.loss")
    targets = embeddings(V, 6, 5).requires_grad_()
    predictions = embeddings(V, 6, 5, seed=1).requires_grad_()
    lightlys, pairs = lightly.NegativeCosineSimilarity(), list(permutations(range(V), 2))
    want = sum(lightlys(predictions[a], targets[b].detach()) for a, b in pairs) / len(pairs)
    (want_gradient,) = torch.autograd.grad(want, predictions)
    for name, factor, offset in (("simsiam", 1, 0), ("byol", 2, 2)):
        value = value_of(name, predictions, targets)
        torch.testing.assert_close(value, factor * want + offset, rtol=1e-6, atol=1e-9)
        got, none = torch.autograd.grad(value, (predictions, targets), allow_unused=True)
        torch.testing.assert_close(got, factor * want_gradient, rtol=1e-6, atol=1e-9)
        assert none is None  # the target's gradient stops


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_gradcheck(embeddings, name):
    targets = embeddings(3, 4, 3)
    predictions = embeddings(3, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: value_of(name, p, targets), predictions)


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_scale_order_of_images_and_parts_of_the_batch_do_not_matter(embeddings, name):
    targets, predictions = embeddings(2, 8, 5), embeddings(2, 8, 5, seed=1)
    want = value_of(name, predictions, targets)
    order = torch.randperm(8)
    torch.testing.assert_close(value_of(name, predictions[:, order], targets[:, order]), want)
    torch.testing.assert_close(value_of(name, 1e6 * predictions, 1e-6 * targets), want)
    parts = zip(predictions.chunk(4, 1), targets.chunk(4, 1), strict=True)
    torch.testing.assert_close(sum(value_of(name, *part) for part in parts) / 4, want)
    assert not torch.isclose(value_of(name, predictions, targets[:, order.roll(1)]), want)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASE_NAMES)
@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_degenerate_embeddings_have_a_finite_loss_and_gradient(
    embeddings, name, case, dtype, scale
):
    x = (scale * degenerate(embeddings(2, 32, 16, dtype=dtype))[case]).requires_grad_()
    y = scale * degenerate(embeddings(2, 32, 16, seed=1, dtype=dtype))[case]
    for targets in (y, x.detach()):
        value = value_of(name, x, targets)
        (gradient,) = torch.autograd.grad(value, x)
        lowest = {"simsiam": -1, "byol": 0}[name]
        assert lowest - 1e-5 <= value <= {"simsiam": 1, "byol": 4}[name] + 1e-5
        assert gradient.isfinite().all()
        assert gradient[x.detach().norm(dim=-1) == 0].abs().sum() == 0


@pytest.mark.parametrize("name", ["simsiam", "byol"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_vectors_are_not_hidden(embeddings, name, bad):
    good, broken = embeddings(2, 4, 3), embeddings(2, 4, 3)
    broken[1, 2, 0] = bad
    assert value_of(name, broken, good).isnan() and value_of(name, good, broken).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_autocast_does_not_reach_it(embeddings, name, dtype):
    targets, predictions = embeddings(2, 32, 16).to(dtype), embeddings(2, 32, 16, seed=1).to(dtype)
    want = value_of(name, predictions.float(), targets.float())
    predictions.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        value = value_of(name, predictions, targets)
        value.backward()
    assert value.dtype == torch.float32 and torch.equal(value, want)
    assert predictions.grad.dtype == dtype and predictions.grad.abs().max() > 0


def test_what_does_not_go_together_is_refused(embeddings):
    x = embeddings(2, 4, 3)
    with pytest.raises(ValueError, match=r"predictions have shape \[2, 4, 2\], want \[2, 4, 3\]"):
        mean_cosine(x[..., :2], x)
    with pytest.raises(ValueError, match="at least 2 views"):
        SIMSIAM(x[:1], predictions=x[:1])
    with pytest.raises(ValueError, match="at least 2 views"):
        BYOL(x[:1], predictions=x[:1], targets=x[:1])
    with pytest.raises(ValueError, match="batch of 1 images; use at least 2"):
        SIMSIAM(x[:, :1], predictions=x[:, :1])
