"""W-MSE by hand, and what it is invariant to."""

import doctest
import sys
from pathlib import Path

import pytest
import torch

import pretrain
from pretrain.config.loss import LossConfig
from pretrain.losses import CWRGPLoss, WMSELoss, build_loss, w_mse

PACKAGE = Path(pretrain.__file__).parent


def test_opposite_and_equal_views_by_hand():
    # one whitened channel: +-1 after normalisation. View 2 flips one pair of signs of four.
    x = torch.tensor([[[1.0], [1], [-1], [-1]], [[1.0], [-1], [1], [-1]]], dtype=torch.float64)
    assert WMSELoss(4)(x).item() == pytest.approx((0 + 4 + 4 + 0) / 4)
    # without normalisation S = 4/3: outputs +-sqrt(3/4), squared distance 3 where they differ
    assert WMSELoss(4, normalize=False)(x).item() == pytest.approx((0 + 3 + 3 + 0) / 4)
    assert WMSELoss(4)(torch.stack([x[0], x[0]])).item() == pytest.approx(0.0, abs=1e-15)


def test_permuting_channels_leaves_one_group_of_zca_but_not_cholesky(embeddings):
    x, order = embeddings(2, 24, 8), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    for loss in (WMSELoss(24, method="zca"), CWRGPLoss(6, 1)):
        y = x if isinstance(loss, WMSELoss) else embeddings(2, 6, 8)
        torch.testing.assert_close(loss(y[..., order]), loss(y))
    assert (WMSELoss(24)(x[..., order]) - WMSELoss(24)(x)).abs() > 1e-3


def test_rotating_features_leaves_zca_but_not_cholesky(embeddings):
    # ZCA turns its output along (y -> y R), so distances stay. Cholesky's output turns by another
    # rotation in each view. Channel whitening sees only x xᵀ, so any rotation that keeps the
    # all-ones direction of the centring leaves it.
    x = embeddings(2, 24, 8)
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator).double())[0]
    torch.testing.assert_close(WMSELoss(24, method="zca")(x @ turn), WMSELoss(24, method="zca")(x))
    assert (WMSELoss(24)(x @ turn) - WMSELoss(24)(x)).abs() > 1e-3


def test_from_config_to_gradient_it_is_read_in_five_files():
    files = set()
    sys.setprofile(lambda frame, *_: files.add(Path(frame.f_code.co_filename)))
    try:
        x = torch.randn(2, 32, 8, requires_grad=True)
        build_loss(LossConfig(name="w-mse", sub_batch=32))(x).backward()
    finally:
        sys.setprofile(None)
    names = {str(path.relative_to(PACKAGE)) for path in files if path.is_relative_to(PACKAGE)}
    table = "losses/__init__.py"
    assert {name for name in names - {table} if not name.startswith("runtime/")} == {
        "config/loss.py", "losses/w_mse.py", "losses/base.py", "whitening/functional.py",
        "whitening/inverse_sqrt.py",
    }  # fmt: skip


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(w_mse)
    assert result.attempted and not result.failed
