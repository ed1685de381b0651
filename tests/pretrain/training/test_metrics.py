"""The report of a run: what is logged; a bar on a terminal, a line now and then elsewhere."""

import io
import logging
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from pretrain.config.pretrain import PretrainConfig
from pretrain.train import pretrain
from pretrain.training import metrics
from pretrain.training.metrics import TrainingProgress, note
from tests.pretrain.training.runs import logged

ENTRY = {
    "step": 30.0, "loss": 1.23456, "lr": 0.0004, "images_per_s": 81.25,
    "embedding/rank": 32.0, "encoding/rank": 7.0,
}  # fmt: skip
Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")


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
    (line,) = caplog.messages
    assert re.fullmatch(rf"step 30 of 200, 0:00:0\d left: {re.escape(note(ENTRY))}", line)


def test_the_time_left_is_that_of_the_pace_so_far(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = iter([100.0, 200.0, 300.0, 400.0])  # begun; three lines
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(now))
    bar = TrainingProgress(1000, 28, Console(file=io.StringIO()))
    for step in (28, 30, 1000):  # nothing done yet; 2 of 972 in 200 s; all
        bar.logged({"step": step, "loss": 1.0})
    assert caplog.messages == [
        "step 28 of 1000: loss 1",
        f"step 30 of 1000, {timedelta(seconds=970 * 100)} left: loss 1",
        "step 1000 of 1000: loss 1",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_probe_measures_has_a_line_of_its_own(
    caplog: pytest.LogCaptureFixture, terminal: bool
) -> None:
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    with TrainingProgress(40, 0, Console(file=stream, force_terminal=terminal, width=90)) as bar:
        bar.logged({"step": 40, "loss": 1.0})
        bar.logged({"step": 40, "knn/top1": 51.5})
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = text.splitlines() if terminal else caplog.messages
    assert [line.strip() for line in lines if "of 40:" in line] == ["step 40 of 40: knn/top1 51.5"]


def test_a_healthy_run_logs_no_ridge_and_a_white_output(tiny: Make, tmp_path: Path) -> None:
    pretrain(tiny(max_steps=2), tmp_path / "run")
    entries = logged(tmp_path / "run")
    assert [entry["step"] for entry in entries] == [1, 2]
    for entry in entries:
        assert entry["regularized"] == 0
        assert entry["whitened/rank"] == 4
        assert entry["whitened/stable_rank"] == pytest.approx(4, rel=1e-4)
        assert entry["embedding/stable_rank"] < 3.99
        assert entry["encoding/rank"] <= 7  # eight images, centred
        counts = {name for name, value in entry.items() if isinstance(value, int)}
        ranks = {f"{name}/rank" for name in ("encoding", "embedding", "whitened")}
        assert counts == {"step", "max_steps", "regularized"} | ranks


def test_a_loss_that_whitens_nothing_logs_no_whitened_output(tiny: Make, tmp_path: Path) -> None:
    pretrain(tiny(max_steps=1, method="none", loss={"name": "none"}), tmp_path / "run")
    (entry,) = logged(tmp_path / "run")
    assert "embedding/rank" in entry
    assert not any(name.startswith("whitened") for name in entry)


def test_indicators_have_a_period_of_their_own(tiny: Make, tmp_path: Path) -> None:
    pretrain(tiny(log_every=2, indicators_every=3), tmp_path / "run")
    entries = logged(tmp_path / "run")
    ranks = {entry["step"]: "embedding/rank" in entry for entry in entries}
    assert ranks == {2: False, 3: True, 4: False, 5: True}  # the last step has them
    assert tiny(indicators_every=3).identity() == tiny().identity()
