"""Rank, stable rank and effective rank by hand, with rounding noise and offsets."""

import doctest
import math

import pytest
import torch

from pretrain import indicators
from pretrain.indicators import centred_indicators, spectrum_indicators
from tests.fake_cuda import CUDA, fake_cuda


def test_by_hand():
    # singular values 4, 2, 2 of a 5 x 4 matrix
    features = torch.zeros(5, 4)
    features[0, 0], features[1, 1], features[3, 2] = 4.0, 2.0, -2.0
    got = spectrum_indicators(features)
    assert got["rank"] == 3
    assert got["stable_rank"] == pytest.approx((16 + 4 + 4) / 16)
    assert got["normalized_stable_rank"] == pytest.approx(24 / 16 / 4)
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert got["effective_rank"] == pytest.approx(math.exp(entropy))


def test_orthogonal_columns_have_full_rank_of_every_kind():
    features = torch.linalg.qr(torch.randn(30, 6))[0] * 7
    got = spectrum_indicators(features)
    assert got["rank"] == 6
    assert got["stable_rank"] == pytest.approx(6, rel=1e-5)
    assert got["normalized_stable_rank"] == pytest.approx(1, rel=1e-5)
    assert got["effective_rank"] == pytest.approx(6, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_direction_has_rank_one_of_every_kind(dtype):
    features = torch.tensor([1.0, 2.0, -4.0, 0.5])[:, None] * torch.tensor([1.0, 0.0, 2.0])
    got = spectrum_indicators(features.to(dtype))
    assert got == pytest.approx(
        {"rank": 1, "stable_rank": 1, "normalized_stable_rank": 1 / 3, "effective_rank": 1},
        abs=1e-6,
    )


def test_zero_features_have_rank_zero_and_scale_does_not_matter():
    assert set(spectrum_indicators(torch.zeros(4, 3)).values()) == {0.0}
    features = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert spectrum_indicators(features * 1e-20) == pytest.approx(
        spectrum_indicators(features), rel=1e-5
    )


def test_rounding_noise_is_no_rank():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    assert spectrum_indicators(features)["rank"] == 3
    assert spectrum_indicators(features.T)["rank"] == 3


def test_features_are_taken_as_they_are_and_may_need_gradients():
    got = spectrum_indicators(torch.ones(4, 3, requires_grad=True))
    assert got["rank"] == 1


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3), r"want features \[N, D\], got \[3\]"),
        (torch.zeros(0, 3), r"want features \[N, D\], got \[0, 3\]"),
        (torch.tensor([[1.0, torch.nan]]), "got 1 of 2 entries NaN"),
    ],
)
def test_faults(features, message):
    with pytest.raises(ValueError, match=message):
        spectrum_indicators(features)


def test_centred_indicators_ignore_what_all_samples_share():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    found = centred_indicators({"a": x + 3.7, "b": torch.full((7, 3), 3.7)})
    want = spectrum_indicators(x - x.mean(0))
    assert {key: found[f"a/{key}"] for key in want} == pytest.approx(want, rel=1e-4)
    assert {key: found[f"b/{key}"] for key in want} == dict.fromkeys(want, 0.0)
    assert len(found) == 2 * len(want)


@pytest.mark.parametrize("shape", [(128, 512), (300, 40), (64, 64)])
@pytest.mark.parametrize("falloff", [0.0, 4.0, 12.0])
def test_they_are_those_of_the_singular_values(shape, falloff):
    """Down to what float32 can tell; below 1e-8 of the largest a Gram matrix has only rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * torch.logspace(0, -falloff, shape[1])
    values = torch.linalg.svdvals(x.double())
    share = values / values.sum()
    stable = float((values / values[0]).square().sum())
    want = {
        "rank": int((values > max(shape) * torch.finfo(torch.float32).eps * values[0]).sum()),
        "stable_rank": stable,
        "normalized_stable_rank": stable / shape[1],
        "effective_rank": float(torch.exp(-(share * share.log()).sum())),
    }
    assert spectrum_indicators(x) == pytest.approx(want, rel=1e-5)


def test_a_gpu_is_read_once():
    with fake_cuda() as gpu:
        found = centred_indicators(
            {"a": torch.empty(16, 64, device=CUDA), "b": torch.empty(16, 4, device=CUDA)}
        )
        assert len(gpu.waits) == 1 and len(found) == 8


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(indicators)
    assert result.attempted and not result.failed
