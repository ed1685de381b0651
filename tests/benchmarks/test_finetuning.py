"""The parts of a fine-tuning: all that it measures is there, and no second counts twice."""

import time

import pytest
import torch

from benchmarks.finetuning import FORWARD, PARTS, REST, Clock, benchmark_finetuning, measured_parts


def test_what_runs_within_another_part_counts_for_the_inner_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([1.0, 3.0, 7.0, 15.0, 31.0, 63.0])
    monkeypatch.setattr(time, "process_time", lambda: next(now))
    clock = Clock(since=0.0)
    with clock.part("outer"):
        clock.around(lambda: None, "inner")()
    with clock.part("inner"):
        pass
    assert clock.seconds == {REST: 1.0 + 16.0, "outer": 2.0 + 8.0, "inner": 4.0 + 32.0}


@pytest.mark.slow
def test_every_part_of_a_fine_tuning_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_finetuning(steps=2)
    rows = capsys.readouterr().out.splitlines()[2:]
    printed = {line[:52].strip() for line in rows}
    named = {part for part, *_ in PARTS} - {"precise BN"} | {*FORWARD.values(), "imports", REST}
    assert printed == named | {"all"}
    *parts, whole = (float(line.split()[-2]) for line in rows)
    assert sum(parts) == pytest.approx(whole, abs=0.01 * len(parts))


def test_what_is_timed_is_put_back() -> None:
    before = torch.Tensor.backward
    with measured_parts(Clock()):
        assert torch.Tensor.backward is not before
    assert torch.Tensor.backward is before
