"""The distance between views: close views, its gradient."""

import itertools

import pytest
import torch

from pretrain.config.loss import LossConfig
from pretrain.losses import CWRGPLoss, WMSELoss, build_loss
from pretrain.losses.base import pairwise_mse


def close_views(dtype=torch.float64):
    """Views [3, 16, 8] that differ in the fourth digit."""
    noise = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (100 + 0.01 * noise).to(dtype)


def pair_by_pair(views, *, normalize):
    views = views.double()
    if normalize:
        views = views / views.norm(dim=-1, keepdim=True)
    pairs = itertools.combinations(views, 2)
    squares = torch.stack([(a - b).square().sum(-1).mean() for a, b in pairs])
    return squares.mean() / (1 if normalize else views.shape[-1])


@pytest.mark.parametrize("normalize", [True, False])
def test_close_views_do_not_cancel(normalize):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-2)):
        views = close_views(dtype)
        want = pair_by_pair(views, normalize=normalize).item()
        assert pairwise_mse(views, normalize=normalize).item() == pytest.approx(want, rel=tolerance)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_of_close_views(normalize):
    views = close_views().requires_grad_()
    got, want = (
        torch.autograd.grad(distance(views, normalize=normalize), views)[0]
        for distance in (pairwise_mse, pair_by_pair)
    )
    assert (got - want).norm() <= 1e-8 * want.norm()


def test_the_control_sees_close_views():
    loss = build_loss(LossConfig(name="none"))
    views = close_views(torch.float32)
    assert loss(views).item() == pytest.approx(pair_by_pair(views, normalize=True).item(), rel=1e-2)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("build", [WMSELoss, lambda n, **k: CWRGPLoss(n, 1, **k)])
def test_the_loss_of_close_whitened_views_grows_with_the_square_of_their_distance(build, normalize):
    generator = torch.Generator().manual_seed(1)
    shape = (16, 6) if build is WMSELoss else (8, 24)
    images, noise = (torch.randn(*shape, generator=generator).double() for _ in range(2))
    loss, order = build(shape[0], normalize=normalize), torch.arange(shape[0])[None]
    near, far = (
        loss(torch.stack([images, images + step * noise]), batch_permutation=order).item()
        for step in (1e-7, 1e-5)
    )
    assert far / near == pytest.approx(1e4, rel=1e-3)
