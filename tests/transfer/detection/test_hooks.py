"""Hooks: all processes leave together, and every evaluation is kept."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from transfer.detection import trainer as trainer_module
from transfer.detection.trainer import (
    EXIT_INTERRUPTED,
    LongPass,
    StopOnSignal,
    evaluations,
    record_evaluation,
)


@pytest.mark.parametrize("world_size, received_at, left_at", [
    (1, 2, 2), (2, 2, 9), (2, 9, 9), (2, 10, 19), (2, 20, 23), (2, 99, None),
])  # fmt: skip
def test_processes_leave_together_after_a_tenth_iteration_or_the_last(
    monkeypatch: pytest.MonkeyPatch, world_size: int, received_at: int, left_at: int | None
) -> None:
    asked, saved = [], []

    def all_gather(received: bool) -> list[bool]:
        asked.append(trainer.iter)
        return [False] * (world_size - 1) + [received]

    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(comm, "all_gather", all_gather)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    hook = StopOnSignal()
    save = SimpleNamespace(save=lambda name, iteration: saved.append((name, iteration)))
    trainer: Any = SimpleNamespace(iter=0, max_iter=24, is_complete=True, checkpointer=save)
    hook.trainer = trainer
    for trainer.iter in range(24):
        hook.received |= trainer.iter == received_at
        try:
            hook.after_step()
        except SystemExit as stopped:
            assert stopped.code == EXIT_INTERRUPTED and not trainer.is_complete
            break
    assert saved == ([(f"model_{left_at:07d}", left_at)] if left_at is not None else [])
    assert asked == (
        [i for i in (9, 19, 23) if left_at is None or i <= left_at] if world_size > 1 else [0, 1, 2]
    )


def test_evaluations_are_kept_with_their_iteration(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step, value in ((10, 20.0), (20, 31.0), (30, 31.0), (40, 25.0)):
        with path.open("a", encoding="utf-8") as file:
            file.write(f'{{"step": {step}, "total_loss": 1.0}}\n')
        metrics = {"bbox/AP": value, "bbox/AP50": value + 1, "bbox/APl": float("nan"),
                   "bbox/AP-one": value, "segm/AP": 50 - value}  # fmt: skip
        kept = record_evaluation(path, metrics, step, max_steps=40)
    assert [(entry["step"], entry["bbox/AP"]) for entry in evaluations(path)] == [
        (10, 20), (20, 31), (30, 31), (40, 25),
    ]  # fmt: skip
    assert "bbox/APl" not in evaluations(path)[0] and evaluations(path)[0]["max_steps"] == 40
    assert (kept["bbox/AP"], kept["iteration"]) == (25, 40)
    best = {key: value for key, value in kept.items() if key.startswith("best/")}
    assert best == {
        "best/bbox/AP": 31, "best/bbox/AP50": 32, "best/segm/AP": 19, "best/iteration": 20,
    }  # fmt: skip


def test_a_pass_beside_training_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    monkeypatch.setattr(trainer_module, "TELL_EVERY_S", -1)
    with EventStorage(11), caplog.at_level(logging.INFO):
        batches = LongPass([["a"], ["b"], ["c"]], "evaluating", 2_005, path, 40, num_each=1_000)
        with EventStorage():  # as precise BatchNorm opens one of its own
            assert len(batches) == 3 and list(batches) == [["a"], ["b"], ["c"]]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    said = [f"evaluating {done}/2,005" for done in ("0", "1,000", "2,000", "2,005")]
    assert lines == [{"step": 12, "max_steps": 40, "doing": doing} for doing in said]
    assert [record.getMessage() for record in caplog.records] == said[1:]
    assert evaluations(path) == []


def test_a_short_pass_says_that_it_begins_and_one_without_training_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    with EventStorage(0):
        assert list(LongPass([1, 2], "evaluating", 2, path, 40)) == [1, 2]
    assert json.loads(path.read_text(encoding="utf-8"))["doing"] == "evaluating 0/2"
    path.unlink()
    monkeypatch.setattr(trainer_module, "TELL_EVERY_S", -1)
    assert list(LongPass([1, 2], "evaluating", 2, path, 40)) == [1, 2]
    assert not path.exists()
