"""The device of a benchmark: its name and the memory of a step, here on a CPU."""

import platform

import pytest
import torch

from benchmarks.device import best_device, device_name, peak_mb
from benchmarks.whitening import WHITENING_CASES
from pretrain.losses import build_loss

CPU = torch.device("cpu")


def test_the_gpu_is_taken_where_there_is_one() -> None:
    assert best_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_name(CPU) == platform.machine()


def test_peak_memory_counts_what_is_alive_at_once():
    def two_then_one():
        a = torch.ones(1_000_000)  # 4 MB
        b = a + 1
        del a
        return b + 1

    assert peak_mb(two_then_one, CPU) == pytest.approx(8.0, abs=0.1)


def test_peak_memory_does_not_depend_on_the_threads():
    x = WHITENING_CASES[2].embeddings(CPU).requires_grad_()
    loss = build_loss(WHITENING_CASES[2].config)
    torch.autograd.backward(loss(x))  # what is allocated once is there before the measurement
    before = torch.get_num_threads()
    peaks = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            peaks.append(peak_mb(lambda: torch.autograd.backward(loss(x)), CPU))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.01)
    assert peaks[0] > 3 * x.numel() * 4 / 1e6


def test_a_step_that_fails_leaves_the_number_of_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            peak_mb(lambda: 1 / 0, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
