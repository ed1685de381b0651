"""Rows of the losses and of S^(-1/2), at sizes that cost nothing."""

from pathlib import Path

import pytest

from benchmarks.gpu_check import whitening
from benchmarks.gpu_check.whitening import inverse_root_row, loss_row, steps_of
from benchmarks.whitening import WhiteningCase
from pretrain.config.loss import LossConfig

CASE = WhiteningCase("small", LossConfig(name="w-mse", sub_batch=8), batch=16, views=2, dim=4)


def test_both_losses_are_timed_and_agree(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "TINY", True)
    assert list(steps_of(CASE)) == ["plain", "ours"]
    row = loss_row(CASE)
    assert row["ratio"] == pytest.approx(row["plain ms"] / row["ours ms"]) and row["ours ms"] > 0


def test_every_way_to_a_root_is_timed() -> None:
    row = inverse_root_row(2, 8)
    assert row.keys() >= {"matmul", "its derivative", "eigh", "svd", "cholesky"}
    assert all(value > 0 for value in row.values())
