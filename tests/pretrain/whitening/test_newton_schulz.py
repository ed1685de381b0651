"""Inverse square roots and Lyapunov equations by matrix products."""

import torch

from pretrain.whitening.inverse_sqrt import RIDGE
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


def test_members_that_do_not_converge_get_a_ridge(features, covariance, inverse_sqrt_by):
    good = covariance(features(40, 6, dtype=torch.float32), "batch")[0]
    matrices = torch.stack([good, torch.diag(torch.tensor([1.0, 1, 1, 1, 1, 1e-12])), good])
    _, converged = inverse_sqrt_by_matmul(matrices, 1e-6)
    assert converged.tolist() == [True, False, True]
    root = inverse_sqrt_by(matrices, "newton")
    ridge = RIDGE * 5.0 / 6.0
    want = torch.tensor([(1 + ridge) ** -0.5] * 5 + [ridge**-0.5])
    torch.testing.assert_close(root.weight[1].diagonal(), want)
    assert int(root.num_regularized) == 1
