"""A log that grows is read and sent once; a tracker that fails gets what it missed later."""

import doctest
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.run_folder import lock
from pipeline.tracking import follow
from pipeline.tracking.follow import Ending, Follower, Steps
from pipeline.tracking.writers import TrackedRun, Writer
from tests.pipeline.local_runs import until

RUN = TrackedRun({}, "", "pretrain/a", "pretrain", {}, {})
JOB = {"tracker": "trackio", "run": vars(RUN)}
Sent = list[tuple[str, int]]


def log(path: Path, *steps: int, mode: str = "a", name: str = "loss") -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step, name: step / 2}) + "\n" for step in steps)


def test_a_step_is_whole_once_another_begins_or_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = Steps(path)
    steps.read()  # there is no log yet
    log(path, 1, 2)
    log(path, 2, name="knn/top1")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "doing": "evaluating 1/9"}\nno json\n[1]\n{"step": 3, "lo')
    steps.read()
    assert list(steps.whole(-1, at_end=False)) == [(1, {"loss": 0.5})]
    with path.open("a", encoding="utf-8") as file:
        file.write('ss": NaN}\n')
    log(path, 3, name="lr")
    steps.read()
    assert list(steps.whole(1, at_end=False)) == [(2, {"loss": 1.0, "knn/top1": 1.0})]
    assert list(steps.whole(2, at_end=True)) == [(3, {"lr": 1.5})]
    assert list(steps.whole(-1, at_end=True)) == []


@pytest.mark.parametrize("in_place", [True, False])
def test_a_log_that_is_written_anew_is_read_anew_and_no_step_is_sent_again(
    tmp_path: Path, in_place: bool
) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = Steps(path)
    log(path, 2, 4, 6, 8)
    steps.read()
    assert [step for step, _ in steps.whole(-1, at_end=False)] == [2, 4, 6]
    if not in_place:
        path.rename(tmp_path / "old")
    log(path, 2, 4, 5, 6, 7, 9, mode="w")  # from a state at step 4, and already longer
    steps.read()
    assert [step for step, _ in steps.whole(6, at_end=True)] == [7, 9]


def test_a_log_that_goes_on_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = Steps(path)
    for step in range(1, 4):
        log(path, step)
        steps.read()
    assert steps.place == path.stat().st_size
    assert [step for step, _ in steps.whole(-1, at_end=True)] == [1, 2, 3]


class Library:
    """A tracker that fails when it is told to, and what it got."""

    def __init__(self) -> None:
        self.sent: Sent = []
        self.opened: list[str | None] = []
        self.fails = ""

    def __call__(self, run: TrackedRun, run_id: str | None) -> Writer:
        self.opened.append(run_id)
        self.fail("open")
        return Writer("id7", self.log, lambda table, step: None, self.finish)

    def fail(self, where: str) -> None:
        if self.fails == where:
            raise ConnectionError("https://me:word@host is away")

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.fail("log")
        self.sent.append(("log", step))

    def finish(self, status: str, summary: dict[str, float], step: int) -> None:
        self.fail("finish")
        self.sent.append((status, step))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Library:
    made = Library()
    monkeypatch.setitem(follow.WRITERS, "trackio", made)
    for name, value in (("POLL_S", 0.01), ("RETRY_S", 0.01)):
        monkeypatch.setattr(follow, name, value)
    (tmp_path / "tracking").mkdir()
    return made


class Stage:
    """A stage that a follower follows in a thread, until it is told how the stage ended."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reader, writer = os.pipe()
        monkeypatch.setattr(follow.os, "_exit", lambda code: None)
        monkeypatch.setattr(follow, "LAST_WORDS_S", 0.0)
        self.words, self.stdin = io.StringIO(), os.fdopen(writer, "w")
        self.follower = Follower("trackio", RUN, folder, self.words)
        self.reader = os.fdopen(reader)
        ending = Ending(self.reader)
        self.thread = threading.Thread(target=self.follower.follow, args=(ending,))
        self.thread.start()

    def ends(self, status: str | None) -> None:
        last = {"status": status, "summary": {"loss": 1.0}, "patience_s": 0}
        self.stdin.write(json.dumps(last) + "\n" if status else "")
        self.stdin.close()
        self.thread.join()
        self.reader.close()


def state(folder: Path) -> Any:
    path = folder / "tracking" / "trackio.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def sends(library: Library, step: int) -> Callable[[], bool]:
    return lambda: ("log", step) in library.sent


def test_a_resumed_stage_goes_on_in_its_run_from_the_step_that_was_sent_last(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch)
    log(tmp_path / "metrics.jsonl", 1, 2, 3)
    until(sends(library, 2))
    stage.ends(None)  # killed
    assert library.sent == [("log", 1), ("log", 2), ("interrupted", 2)]
    assert state(tmp_path) == {"id": "id7", "step": 2, "fault": None}
    log(tmp_path / "metrics.jsonl", 1, 2, 3, mode="w")
    stage = Stage(tmp_path, monkeypatch)
    log(tmp_path / "metrics.jsonl", 4)
    stage.ends("finished")
    assert library.opened == [None, "id7"]
    assert library.sent[3:] == [("log", 3), ("log", 4), ("finished", 4)]
    assert stage.words.getvalue() == ""


@pytest.mark.parametrize("where", ["open", "log"])
def test_a_tracker_that_comes_back_gets_what_it_has_missed(
    where: str, tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.fails = where
    stage = Stage(tmp_path, monkeypatch)
    log(tmp_path / "metrics.jsonl", 1, 2, 3)
    until(lambda: state(tmp_path).get("fault"))
    assert "https://***@host is away" in state(tmp_path)["fault"]
    library.fails = ""
    until(sends(library, 2))
    stage.ends("finished")
    assert library.sent == [("log", 1), ("log", 2), ("log", 3), ("finished", 3)]
    assert state(tmp_path)["fault"] is None
    (line,) = stage.words.getvalue().splitlines()
    assert line.startswith("tracking: trackio: ConnectionError: https://***@host is away; ")


def test_a_step_is_rather_missing_than_there_twice(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = []
    sent = library.log
    monkeypatch.setattr(
        library, "log", lambda metrics, step: (known.append(state(tmp_path)), sent(metrics, step))
    )
    stage = Stage(tmp_path, monkeypatch)
    log(tmp_path / "metrics.jsonl", 1, 2)
    stage.ends("finished")
    assert [each["step"] for each in known] == [1, 2]


def test_two_at_once_do_not_write_to_one_run(tmp_path: Path) -> None:
    (tmp_path / "tracking").mkdir()
    text = json.dumps(JOB | {"run_dir": str(tmp_path)}) + "\n"
    with lock(tmp_path / "tracking" / "trackio.lock"):
        child = subprocess.run(
            [sys.executable, "-m", "pipeline.tracking.follow"],
            input=text, text=True, capture_output=True, check=False,
        )  # fmt: skip
    assert child.returncode == 1
    assert "is written to by process" in child.stderr


def test_what_it_says_holds_no_secret() -> None:
    assert doctest.testmod(follow) == (0, 2)
