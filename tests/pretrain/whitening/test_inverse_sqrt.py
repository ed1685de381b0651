"""Inverse square roots by method: singular, scaled, non-finite matrices; gradients; solves."""

import math

import pytest
import torch

from pretrain.whitening import inverse_sqrt as module
from pretrain.whitening import whiten
from pretrain.whitening.functional import AXES
from pretrain.whitening.inverse_sqrt import METHODS, Cholesky

D64 = torch.float64


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (D64, 1e-8)])
def test_matmul_roots_equal_the_exact_ones(
    condition, dtype, tolerance, features, rotation, inverse_sqrt_by
):
    turn = rotation(24)
    values = torch.logspace(0, -math.log10(condition), 24, dtype=D64) * 5
    weight = turn * values.rsqrt() @ turn.T
    matrices = ((turn * values) @ turn.T).to(dtype)[None]
    exact, by_matmul = (inverse_sqrt_by(matrices, m) for m in ("zca", "newton"))
    assert (by_matmul.weight.to(D64) - weight).norm() <= tolerance * weight.norm()
    product = features(1, 24, 24, seed=1).to(dtype)
    want, got = exact.symmetric_part(product), by_matmul.symmetric_part(product)
    assert (got - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("method", METHODS)
def test_a_singular_member_is_repaired_and_its_neighbours_are_not_touched(
    method, features, covariance, inverse_sqrt_by
):
    x = features(3, 20, 6, dtype=torch.float32)
    x[1, :, 5] = x[1, :, 4]
    y = whiten(x, over="batch", method=method)
    for member in (0, 2):
        torch.testing.assert_close(
            y[member], whiten(x[member], over="batch", method=method), rtol=0, atol=1e-5
        )
    assert y.isfinite().all()
    matrices = covariance(x - x.mean(1, keepdim=True), "batch")[:, 0]
    assert int(inverse_sqrt_by(matrices, method).num_regularized) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_which_is_not_asked_gives_what_a_cpu_gives(
    method, features, covariance, inverse_sqrt_by, monkeypatch
):
    """There every batch is treated as if it had a singular and a non-finite member."""
    x = features(4, 20, 6, dtype=torch.float32)
    healthy = covariance(x - x.mean(1, keepdim=True), "batch")[:, 0]
    mixed = healthy.clone()
    mixed[1, :, 5], mixed[1, 5] = mixed[1, :, 4].clone(), mixed[1, 4].clone()
    mixed[1, 5, 5] = mixed[1, 4, 4]
    mixed[2, 0, 0] = torch.nan
    for matrices in (healthy, mixed, mixed[:2]):
        want = inverse_sqrt_by(matrices, method)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_any", lambda _: True)
            got = inverse_sqrt_by(matrices, method)
        torch.testing.assert_close(vars(got), vars(want), rtol=0, atol=0, equal_nan=True)


def test_cholesky_counts_what_lapack_refuses_and_what_rounding_let_pass(inverse_sqrt_by):
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=D64)
    almost_singular = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-15]], dtype=D64)
    assert int(torch.linalg.cholesky_ex(almost_singular).info) == 0
    matrices = torch.stack([indefinite, torch.eye(2, dtype=D64), almost_singular])
    assert int(inverse_sqrt_by(matrices, "cholesky").num_regularized) == 2
    assert int(inverse_sqrt_by(matrices[:2], "cholesky").num_regularized) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_non_finite_member_is_nan_and_its_neighbours_are_not(method, features):
    x = features(3, 20, 6, dtype=torch.float32)
    x[1, 3, 2] = torch.inf
    y = whiten(x, over="batch", method=method)
    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("over", AXES)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_gradcheck(over, method, eps, features):
    shape = (2, 9, 4) if over == "batch" else (2, 3, 10)
    generator = torch.Generator().manual_seed(1)
    partition = torch.rand(2, shape[-1], generator=generator).argsort(-1)
    x = features(*shape).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: whiten(x, over=over, method=method, groups=2, partition=partition, eps=eps), x
    )


def test_gradcheck_of_a_few_newton_steps(features):
    x = features(2, 9, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: whiten(x, over="batch", method="newton", newton_iterations=3), x
    )


@pytest.mark.parametrize("method", ["zca", "newton", "cholesky"])
def test_equal_eigenvalues_have_the_exact_derivative(method, rotation):
    # Orthogonal columns of equal length: S = I * c, all gaps zero; autograd through eigh is NaN.
    x = (rotation(8)[:, :7] - rotation(8)[:, :7].mean(0)).clone()
    x = torch.linalg.qr(x)[0][:, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: whiten(x, over="batch", method=method), x)


def test_pca_with_equal_eigenvalues_stays_finite(features):
    x = torch.linalg.qr(features(8, 4) - features(8, 4).mean(0))[0].requires_grad_()
    whiten(x, over="batch", method="pca").pow(3).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("over", AXES)
@pytest.mark.parametrize("method", METHODS)
def test_inputs_and_gradients_of_the_output_are_left_alone(method, over, groups, features):
    x = features(*((20, 6) if over == "batch" else (3, 8))).requires_grad_()
    grad = features(*x.shape, seed=1)
    kept = x.detach().clone(), grad.clone()
    y = whiten(x, over=over, method=method, groups=groups)
    torch.autograd.grad(y, x, grad)
    torch.testing.assert_close((x.detach(), grad), kept, rtol=0, atol=0)


@pytest.mark.parametrize("over", AXES)
@pytest.mark.parametrize("method", METHODS)
def test_the_output_may_be_overwritten_before_the_backward_pass(method, over, features):
    x = features(*((20, 6) if over == "batch" else (3, 8))).requires_grad_()
    y = whiten(x, over=over, method=method)
    (want,) = torch.autograd.grad(y, x, 2 * torch.ones_like(y), retain_graph=True)
    (got,) = torch.autograd.grad(y.mul_(2.0).sum(), x)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def positive_definite(k, condition, dtype=torch.float64):
    """Symmetric matrices [3, k, k] with eigenvalues from 1 down to 1 / `condition`."""
    generator = torch.Generator().manual_seed(k)
    rotation, _ = torch.linalg.qr(torch.randn(3, k, k, generator=generator, dtype=torch.float64))
    values = torch.linspace(1.0, 1.0 / condition, k, dtype=torch.float64)
    return ((rotation * values) @ rotation.mT).to(dtype)


def solve(lower, rows):
    return Cholesky.of_factor(lower, torch.tensor(0)).apply(rows.mT).mT


def solve_transposed(lower, rows):
    return Cholesky.of_factor(lower, torch.tensor(0)).apply_transposed(rows.mT).mT


@pytest.mark.parametrize("k", [1, 2, 3, 31, 64, 65, 128, 131, 300])
def test_solves_equal_lapacks(k):
    lower = torch.linalg.cholesky(positive_definite(k, 100.0))
    rows = torch.randn(3, 7, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = torch.linalg.solve_triangular(lower, rows.mT, upper=False).mT
    assert torch.allclose(solve(lower, rows), want, rtol=1e-12, atol=1e-12)
    want = torch.linalg.solve_triangular(lower.mT, rows.mT, upper=True).mT
    assert torch.allclose(solve_transposed(lower, rows), want, rtol=1e-12, atol=1e-12)
    assert torch.allclose(solve(lower, rows.mT.contiguous().mT), solve(lower, rows), rtol=1e-12)


@pytest.mark.parametrize("k", [64, 128, 300])
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e6])
def test_errors_stay_within_twice_those_of_lapack(k, condition):
    lower = torch.linalg.cholesky(positive_definite(k, condition, torch.float32))
    rows = torch.randn(3, 200, k, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.solve_triangular(lower.double(), rows.double().mT, upper=False).mT
    lapack = torch.linalg.solve_triangular(lower, rows.mT, upper=False).mT
    assert (solve(lower, rows) - exact).norm() <= 2 * (lapack - exact).norm()
