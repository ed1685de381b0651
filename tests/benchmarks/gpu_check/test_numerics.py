"""The comparisons of CPU and device; without a GPU both sides are the CPU and must be equal."""

import pytest
import torch

from benchmarks.gpu_check import numerics
from benchmarks.gpu_check.numerics import colours, degenerate, precision_switches, relative


def test_a_difference_is_relative_to_the_reference() -> None:
    assert relative(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert relative(torch.ones(2), torch.zeros(2)) > 1e9


def test_a_loss_that_differs_on_the_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"w-mse": (numerics.W_MSE, (2, 64, 8))}
    monkeypatch.setattr(numerics, "LOSSES", case)
    assert numerics.losses()["w-mse"]["cuda64 grad"] < 1e-9
    value_and_grad, calls = numerics.value_and_grad, []

    def wrong(settings, x):  # type: ignore[no-untyped-def]
        calls.append(x)
        value, grad, count = value_and_grad(settings, x)
        return value, grad * (1.1 if len(calls) == 2 else 1.0), count  # that of the device

    monkeypatch.setattr(numerics, "value_and_grad", wrong)
    with pytest.raises(AssertionError, match="w-mse: "):
        numerics.losses()


def test_singular_covariances_autocast_and_colours() -> None:
    assert len(degenerate()) >= 3
    assert precision_switches()["value"] > 0
    rows = colours()
    assert rows["blur of all"]["largest difference"] < 0.1
