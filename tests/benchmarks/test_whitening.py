"""The table of losses: sizes, turns between steps, threads."""

import torch

from benchmarks.whitening import (
    WHITENING_CASES,
    WhiteningCase,
    benchmark_whitening,
    interleaved_ms,
)
from pretrain.config.loss import LossConfig

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
