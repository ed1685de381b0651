"""The table of losses: sizes, turns between steps, threads."""

import pytest
import torch

from benchmarks import whitening
from benchmarks.command import main
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


@pytest.mark.parametrize(
    ("device", "gpu", "measured"),
    [
        (None, False, ["cpu"]),
        (None, True, ["cpu", "cuda"]),
        ("cpu", True, ["cpu"]),
        ("cuda", True, ["cuda"]),
    ],
)
def test_a_device_can_be_left_out(device, gpu, measured, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(whitening, "_whitening_table", lambda device, _: device.type)
    assert benchmark_whitening(device=device) == measured


@pytest.mark.parametrize(
    ("gpu", "words", "says"),
    [
        (False, [], "--device cuda: torch sees no GPU here; leave it out"),
        (True, ["--threads", "1"], "--threads are the CPU's, which --device cuda leaves out"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(gpu, words, says, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert main(["whitening", "--device", "cuda", *words]) == 2
    answer = capsys.readouterr()
    assert answer.out == "" and answer.err.startswith(f"benchmark: {says}")
    assert len(answer.err.splitlines()) == 1
