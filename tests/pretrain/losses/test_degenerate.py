"""Singular, scaled and non-finite embeddings."""

import pytest
import torch

from pretrain.losses import CWRGPLoss, WMSELoss, build_loss
from tests.pretrain.losses.compared import BELOW_ZERO, COMPARED


def degenerate(x):
    _, N, D = x.shape
    return {
        "constant": torch.full_like(x, 3.7),
        "zero": torch.zeros_like(x),
        "one zero view": torch.stack([x[0], torch.zeros_like(x[0])]),
        "one image for all": x[:, :1].expand_as(x),
        "images twice": x[:, : N // 4].repeat(1, 4, 1),
        "channels twice": x[..., : D // 4].repeat(1, 1, 4),
        "rank 3": x[..., :3] @ x[0, :3],
        "dead channels": x * (torch.arange(D) < D // 2),
    }


LOSSES = {
    **{f"w-mse {m}": (lambda m=m: WMSELoss(32, method=m)) for m in ("cholesky", "zca", "pca")},
    **{f"cw-rgp {m}": (lambda m=m: CWRGPLoss(8, 2, method=m)) for m in ("cholesky", "zca", "pca")},
    "w-mse newton": lambda: WMSELoss(32, method="newton"),
    "cw-rgp newton": lambda: CWRGPLoss(8, 2, method="newton"),
    "w-mse euclidean": lambda: WMSELoss(32, normalize=False),
    "cw-rgp euclidean": lambda: CWRGPLoss(8, 2, normalize=False),
}
WITHOUT_WHITENING = {
    name: (lambda config=config: build_loss(config)) for name, config in COMPARED.items()
}
CASE_NAMES = sorted(degenerate(torch.zeros(2, 32, 16)))


def check_finite(x, name):
    x = x.clone().requires_grad_()
    loss = LOSSES[name]()
    value = loss(x, generator=torch.Generator().manual_seed(0))
    value.backward()
    assert value.isfinite()
    assert -1e-6 <= value <= (4.001 if loss.config.normalize else 10.0)
    assert x.grad.isfinite().all()
    if "newton" not in name:  # a few Newton steps need no inverse
        assert loss.regularized_count > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASE_NAMES)
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_degenerate_embeddings_have_a_finite_loss_and_gradient(embeddings, name, case, dtype):
    check_finite(degenerate(embeddings(2, 32, 16, dtype=dtype))[case], name)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASE_NAMES)
@pytest.mark.parametrize("name", sorted(WITHOUT_WHITENING))
def test_losses_without_whitening_bear_them_at_any_scale(embeddings, name, case, dtype, scale):
    x = (scale * degenerate(embeddings(2, 32, 16, dtype=dtype))[case]).requires_grad_()
    value = WITHOUT_WHITENING[name]()(x)
    value.backward()
    assert value.isfinite() and (value >= 0 or name in BELOW_ZERO)
    assert x.grad.isfinite().all()


@pytest.mark.usefixtures("zca_by_matmul")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASE_NAMES)
@pytest.mark.parametrize("name", ["w-mse zca", "cw-rgp zca"])
def test_degenerate_embeddings_by_matmul(embeddings, name, case, dtype):
    check_finite(degenerate(embeddings(2, 32, 16, dtype=dtype))[case], name)


@pytest.mark.parametrize("scale", [1e6, 1e-6])
@pytest.mark.parametrize("name", sorted(name for name in LOSSES if "pca" not in name))
def test_scaled_embeddings_need_no_ridge(name, scale):
    """Of PCA the signs of components are arbitrary."""
    generator = torch.Generator().manual_seed(4)
    x = (torch.randn(2, 32, 32 if "cw" in name else 8, generator=generator)).requires_grad_()
    scaled = (x.detach() * scale).requires_grad_()
    loss = LOSSES[name]()
    values = [loss(v, generator=torch.Generator().manual_seed(0)) for v in (x, scaled)]
    sum(values).backward()
    torch.testing.assert_close(values[1], values[0], rtol=1e-3, atol=0)
    assert (scaled.grad * scale - x.grad).norm() <= 1e-3 * x.grad.norm()
    assert loss.regularized_count == 0


def test_only_the_singular_factorisations_are_counted_and_changed(embeddings):
    x = embeddings(2, 64, 8, dtype=torch.float32)
    order = torch.arange(64)[None]
    loss, healthy = WMSELoss(32), WMSELoss(32)
    want = healthy(x, batch_permutation=order)
    broken = x.clone()
    broken[0, :32, 7] = 0.0  # view 0, first sub-batch
    broken.requires_grad_()
    value = loss(broken, batch_permutation=order)
    value.backward()
    assert loss.regularized_count == 1
    assert healthy.regularized_count == 0
    second = WMSELoss(32)(x[:, 32:], batch_permutation=order[:, :32])
    first = WMSELoss(32)(broken[:, :32].detach(), batch_permutation=order[:, :32])
    torch.testing.assert_close(value, (first + second) / 2)
    assert want != value
    loss(x, batch_permutation=order)
    assert loss.regularized_count == 1
    loss(broken.detach(), batch_permutation=order)
    assert loss.regularized_count == 2


@pytest.mark.parametrize("name", sorted(LOSSES | WITHOUT_WHITENING))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_embeddings_are_not_hidden(embeddings, name, bad):
    x = embeddings(2, 32, 16, dtype=torch.float32)
    x[1, 5, 3] = bad
    assert (LOSSES | WITHOUT_WHITENING)[name]()(x).isnan()
    assert (LOSSES | WITHOUT_WHITENING)[name]()(x.requires_grad_()).isnan()
