"""The clock of a fine-tuning: no second counts twice, and what it times is put back."""

import time

import pytest
import torch

from benchmarks.finetuning import REST, Clock, measured_parts


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


def test_what_is_timed_is_put_back() -> None:
    before = torch.Tensor.backward
    with measured_parts(Clock()):
        assert torch.Tensor.backward is not before
    assert torch.Tensor.backward is before
