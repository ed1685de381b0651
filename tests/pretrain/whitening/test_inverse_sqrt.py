"""Inverse square roots by method: singular, scaled and non-finite matrices."""

import math

import pytest
import torch

from pretrain.whitening import whiten
from pretrain.whitening.inverse_sqrt import METHODS

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
