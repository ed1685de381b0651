"""The table of losses: sizes, turns between steps, peak memory, threads."""

import pytest
import torch

from benchmarks.whitening import (
    WHITENING_CASES,
    WhiteningCase,
    benchmark_whitening,
    interleaved_ms,
    peak_mb,
)
from pretrain.config.loss import LossConfig
from pretrain.losses import build_loss

CPU = torch.device("cpu")


def test_there_is_a_table_for_each_number_of_threads(capsys, monkeypatch):
    case = WhiteningCase("tiny", LossConfig(name="w-mse", sub_batch=8), 16, 2, 4)
    monkeypatch.setattr("benchmarks.whitening.WHITENING_CASES", (case,))
    monkeypatch.setenv("COLUMNS", "120")
    before = torch.get_num_threads()
    benchmark_whitening(rounds=1, threads=[1, 2])
    assert torch.get_num_threads() == before
    printed = capsys.readouterr().out
    assert printed.index("1 threads") < printed.index("2 threads")
    assert printed.count("tiny") >= 2


def test_the_published_sizes_can_be_run():
    for case in WHITENING_CASES:
        assert case.config.check(case.batch, case.dim) == []
        assert case.embeddings(CPU).shape == (case.views, case.batch, case.dim)


def test_steps_take_turns_and_each_follows_one_of_its_own():
    calls = []
    steps = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    assert set(interleaved_ms(steps, 3, CPU)) == {"a", "b"}
    assert calls == ["a", "a", "b", "b"] * 4


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
