import pytest
import torch

from pretrain.whitening.triangular import triangle


def covariance(k, condition, dtype=torch.float64):
    """Symmetric matrices [3, k, k] with eigenvalues from 1 down to 1 / `condition`."""
    generator = torch.Generator().manual_seed(k)
    rotation, _ = torch.linalg.qr(torch.randn(3, k, k, generator=generator, dtype=torch.float64))
    values = torch.linspace(1.0, 1.0 / condition, k, dtype=torch.float64)
    return ((rotation * values) @ rotation.mT).to(dtype)


@pytest.mark.parametrize("k", [1, 2, 3, 31, 64, 65, 128, 131, 300])
def test_solves_equal_lapacks(k):
    lower = torch.linalg.cholesky(covariance(k, 100.0))
    rows = torch.randn(3, 7, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = torch.linalg.solve_triangular(lower, rows.mT, upper=False).mT
    assert torch.allclose(triangle(lower).solve(rows), want, rtol=1e-12, atol=1e-12)
    want = torch.linalg.solve_triangular(lower.mT, rows.mT, upper=True).mT
    assert torch.allclose(triangle(lower).solve_transposed(rows), want, rtol=1e-12, atol=1e-12)
    assert torch.allclose(
        triangle(lower).solve(rows.mT.contiguous().mT), triangle(lower).solve(rows), rtol=1e-12
    )


@pytest.mark.parametrize("k", [64, 128, 300])
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e6])
def test_errors_stay_within_twice_those_of_lapack(k, condition):
    lower = torch.linalg.cholesky(covariance(k, condition, torch.float32))
    rows = torch.randn(3, 200, k, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.solve_triangular(lower.double(), rows.double().mT, upper=False).mT
    lapack = torch.linalg.solve_triangular(lower, rows.mT, upper=False).mT
    assert (triangle(lower).solve(rows) - exact).norm() <= 2 * (lapack - exact).norm()
