"""Inverse square roots and Lyapunov equations by matrix products."""

import math

import pytest
import torch

from pretrain.whitening.inverse_sqrt import RIDGE, ZCA, NewtonSchulz
from pretrain.whitening.newton_schulz import (
    inverse_sqrt_by_matmul,
    lyapunov_by_matmul,
    scaling_schedule,
)

D64 = torch.float64


def test_lyapunov_by_hand():
    # diagonal P: X_ij = Q_ij / (p_i + p_j)
    matrix, right = torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([[4.0, 8.0], [8.0, 6.0]])
    want = torch.tensor([[2.0, 2.0], [2.0, 1.0]])
    torch.testing.assert_close(lyapunov_by_matmul(matrix[None], right[None])[0], want)


def test_schedule_maps_the_interval_to_one():
    values = torch.logspace(-3, 0, 50, dtype=D64)
    for scaling in scaling_schedule(1e-3, 1e-6):
        values = 0.5 * scaling * values * (3 - (scaling * values) ** 2)
    assert values.min() > 1 - 1.1e-6
    assert values.max() < 1 + 1e-12


def test_members_that_do_not_converge_are_done_exactly(features, covariance, inverse_sqrt_by):
    good = covariance(features(40, 6, dtype=torch.float32), "batch")[0]
    matrices = torch.stack([good, torch.diag(torch.tensor([1.0, 1, 1, 1, 1, 1e-12])), good])
    _, converged = inverse_sqrt_by_matmul(matrices, 1e-6)
    assert converged.tolist() == [True, False, True]
    root = inverse_sqrt_by(matrices, "newton")
    ridge = RIDGE * 5.0 / 6.0
    want = torch.tensor([(1 + ridge) ** -0.5] * 5 + [ridge**-0.5])
    torch.testing.assert_close(root.weight[1].diagonal(), want)
    assert int(root.num_regularized) == 1


@pytest.mark.parametrize("dtype", [torch.float32, D64])
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("kind", ["small", "spread", "large"])
def test_a_gpu_takes_for_singular_what_a_cpu_does(dtype, size, kind, rotation):
    """Of one small eigenvalue, of all sizes, and of one large one, below and above the limit."""
    limit = 8.0 * torch.finfo(dtype).eps  # of the smallest eigenvalue; the largest is 1
    for smallest, singular in ((100 * limit, 0), (2 * limit, 0), (0.5 * limit, 1), (0.0, 1)):
        values = torch.ones(size, dtype=D64)
        values[:1] = smallest
        if kind != "small":
            values[:-1] = smallest
        if kind == "spread" and smallest:
            values = torch.logspace(math.log10(smallest), 0, size, dtype=D64)
        vectors = rotation(size, seed=1)
        covariance = ((vectors * values) @ vectors.mT).to(dtype)
        covariance = (0.5 * (covariance + covariance.mT)).expand(2, -1, -1)
        exact, unread = ZCA.of(covariance), NewtonSchulz.of_unread(covariance)
        assert int(unread.num_regularized) == int(exact.num_regularized) == 2 * singular
        error = (unread.weight - exact.weight).norm() / exact.weight.norm()
        assert error < (0.1 if smallest else 0.01)  # eigh itself is some per cent off there
