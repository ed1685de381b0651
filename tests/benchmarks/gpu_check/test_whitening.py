"""Rows of the losses and of S^(-1/2), at sizes that cost nothing."""

from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import whitening
from benchmarks.gpu_check.timing import DEVICE
from benchmarks.gpu_check.whitening import eigh_by_cpu, inverse_root_row, loss_row, steps_of
from benchmarks.whitening import WhiteningCase
from pretrain.config.loss import LossConfig
from pretrain.whitening.inverse_sqrt import LARGEST_EIGH_OF_CUDA

CASE = WhiteningCase("small", LossConfig(name="w-mse", sub_batch=8), batch=16, views=2, dim=4)


def test_both_losses_are_timed_and_agree(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "TINY", True)
    assert list(steps_of(CASE)) == ["plain", "ours"]
    row = loss_row(CASE)
    assert row["ratio"] == pytest.approx(row["plain ms"] / row["ours ms"]) and row["ours ms"] > 0


def test_every_way_to_a_root_is_timed() -> None:
    row = inverse_root_row(2, 8)
    ways = {"matmul", "its derivative", "eigh", "eigh by the CPU", "svd", "cholesky"}
    assert row.keys() >= ways
    assert all(value > 0 for value in row.values())


def test_eigh_is_timed_on_both_sides_of_what_a_gpu_takes_as_a_batch() -> None:
    sizes = [size for _, size in whitening.EIGH_SIZES]
    assert LARGEST_EIGH_OF_CUDA in sizes and max(sizes) > LARGEST_EIGH_OF_CUDA


def test_the_cpu_finds_the_same_eigenvalues() -> None:
    covariance = torch.diag_embed(torch.tensor([[3.0, 1.0], [2.0, 5.0]])).to(DEVICE)
    values, vectors = eigh_by_cpu(covariance)
    assert values.device == vectors.device == covariance.device
    assert values.tolist() == [[1.0, 3.0], [2.0, 5.0]]
