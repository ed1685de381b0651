"""Features, covariances and rotations that the tests of whitening start from."""

from collections.abc import Callable

import pytest
import torch

from pretrain.whitening.inverse_sqrt import InverseSqrt, WhiteningSettings, inverse_sqrt

D64 = torch.float64


@pytest.fixture
def features() -> Callable[..., torch.Tensor]:
    """Return a function that makes correlated features [..., N, D] with a mean."""

    def make(*shape: int, seed: int = 0, dtype: torch.dtype = D64) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        mix = torch.randn(shape[-1], shape[-1], generator=generator, dtype=dtype) / shape[-1] ** 0.5
        return torch.randn(*shape, generator=generator, dtype=dtype) @ mix + 0.3

    return make


@pytest.fixture
def covariance() -> Callable[..., torch.Tensor]:
    """Return a function: the covariance that whitening over `over` makes I, one per group."""

    def make(
        y: torch.Tensor, over: str, groups: int = 1, partition: torch.Tensor | None = None
    ) -> torch.Tensor:
        if partition is not None:
            y = y[..., partition]
        blocks = y.unflatten(-1, (groups, -1)).transpose(-3, -2)  # [..., G, N, w]
        variables = blocks.mT if over == "batch" else blocks
        return variables @ variables.mT / (variables.shape[-1] - 1)

    return make


@pytest.fixture
def rotation() -> Callable[..., torch.Tensor]:
    """Return a function that makes a rotation [size, size]."""

    def make(size: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=D64))[0]

    return make


@pytest.fixture
def inverse_sqrt_by() -> Callable[..., InverseSqrt]:
    """Return a function: W of matrices [B, k, k] by a method."""
    return lambda matrices, method: inverse_sqrt(matrices, WhiteningSettings(method))
