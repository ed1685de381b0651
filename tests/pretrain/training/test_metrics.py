"""The report of a run: a bar on a terminal, a line now and then elsewhere."""

import io
import logging

import pytest
from rich.console import Console

from pretrain.training import metrics
from pretrain.training.metrics import TrainingProgress, note

ENTRY = {
    "step": 30.0, "loss": 1.23456, "lr": 0.0004, "images_per_s": 81.25,
    "embedding/rank": 32.0, "encoding/rank": 7.0,
}  # fmt: skip


def test_a_note_has_loss_rate_speed_and_indicators_in_this_order() -> None:
    assert note(ENTRY) == "loss 1.235  lr 0.0004  images_per_s 81.25  embedding/rank 32"
    assert note({"step": 2.0, "knn/top1": 51.5}) == "knn/top1 51.5"


def shown(*, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160)
    with TrainingProgress(200, 28, console) as progress:
        progress.stepped(30)
        progress.logged(ENTRY)
    return stream.getvalue()


def test_a_terminal_shows_steps_time_left_and_the_note() -> None:
    text = shown(terminal=True)
    assert "30/200" in text and note(ENTRY) in text


def test_elsewhere_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert shown(terminal=False) == ""
    assert not caplog.messages  # the last line is not long ago
    monkeypatch.setattr(metrics, "LINE_EVERY_S", -1.0)
    assert shown(terminal=False) == ""
    assert caplog.messages == [f"step 30 of 200: {note(ENTRY)}"]
