"""The process that shows one stage in one tracker: it reads what the stage logs, and sends it on.

python -m pipeline.tracking.follow    a job as a line on stdin; at the stage's end another line

Beside the stage and not in it: a tracker that hangs, crashes or draws random numbers is none of the
training's business. It sends each step once, when the next one begins, in the order of steps: those
that a resumed stage computes again were sent before. What it has to say is one line on stderr; the
library's words are on stdout.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pipeline.stages.files import one_line, read_json, write_json
from pipeline.stages.run_folder import METRICS, TRACKING, LockedError, lock
from pipeline.tracking.writers import WRITERS, Status, TrackedRun, Writer

POLL_S = 1.0
RETRY_S = 60.0
LAST_WORDS_S = 30.0  # to send the rest, once the stage was killed; else it says so itself
EXIT_LATE = 77  # it was not done then
NO_METRICS = ("step", "max_steps")
LOGIN = re.compile(r"//[^/\s]*@")
SECRET = re.compile(r"(KEY|TOKEN|PASSWORD)$")


class Ending:
    """The end of a stage: a line on `stream` that says how it ended, or none if it was killed.

    From then on the process has `patience_s`, whatever a library is busy with.
    """

    def __init__(self, stream: TextIO) -> None:
        self.status: Status = "interrupted"
        self.summary: dict[str, float] = {}
        self.patience_s = LAST_WORDS_S
        self.came = threading.Event()
        threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

    def _listen(self, stream: TextIO) -> None:
        with contextlib.suppress(ValueError, KeyError):  # a line that was cut is none
            last = json.loads(stream.readline())
            self.status, self.summary = last["status"], last["summary"]
            self.patience_s = last["patience_s"]
        self.came.set()
        time.sleep(self.patience_s)
        os._exit(EXIT_LATE)


@dataclass
class Steps:
    """The steps of a log that grows, and that a resumed stage may write anew from an earlier one.

    What was logged at one step may be in several lines, so that a step is whole once another
    begins, or at the end.
    """

    path: Path
    place: int = 0
    last_line: bytes = b""  # before `place`
    pending: dict[int, dict[str, float]] = field(default_factory=dict)

    def read(self) -> None:
        """Take in the lines that are new; all of a file in which the last one is another."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.place - len(self.last_line))
                if file.read(len(self.last_line)) != self.last_line:
                    self.place, self.pending = file.seek(0), {}
                lines = [line for line in file if line.endswith(b"\n")]
        except FileNotFoundError:
            return
        self.place += sum(map(len, lines))
        self.last_line = ([self.last_line, *lines] if self.place else [b""])[-1]
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                entry = json.loads(line)
                metrics = numbers(entry)
                if metrics:
                    self.pending.setdefault(int(entry["step"]), {}).update(metrics)

    def whole(self, after: int, at_end: bool) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield the steps after one that are whole; one is forgotten when the next is asked for."""
        for step in sorted(self.pending):
            if at_end or step < max(self.pending):
                if step > after:
                    yield step, self.pending[step]
                del self.pending[step]


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return what was measured: finite numbers, without the step.

    >>> numbers({"step": 3, "loss": 0.5, "lr": float("nan"), "doing": "evaluating 1/2"})
    {'loss': 0.5}
    """
    return {
        name: float(value)
        for name, value in entry.items()
        if name not in NO_METRICS and isinstance(value, int | float) and math.isfinite(value)
    }


class Follower:
    """What was sent to one tracker, which `path` keeps: the run's id, its last step, a fault.

    `told` is where the first fault is told; a later one is not.
    """

    def __init__(self, tracker: str, run: TrackedRun, run_dir: Path, told: TextIO) -> None:
        self.tracker, self.run, self.told = tracker, run, told
        self.path = run_dir / TRACKING / f"{tracker}.json"
        self.state: dict[str, Any] = {"id": None, "step": -1, "fault": None}
        with contextlib.suppress(FileNotFoundError):
            self.state |= read_json(self.path)
        self.is_told = self.state["fault"] is not None  # by an earlier attempt
        self.steps = Steps(run_dir / METRICS)
        self.writer: Writer | None = None

    def keep(self, **new: Any) -> None:
        """Write down what is known anew."""
        self.state |= new
        write_json(self.path, self.state)

    def follow(self, ending: Ending) -> bool:
        """Send what the stage logs until it ends; return whether all of it was sent."""
        next_try = 0.0
        while True:
            is_last = ending.came.is_set()
            self.steps.read()
            if is_last or time.monotonic() >= next_try:
                try:
                    self._send(is_last and ending.status != "interrupted")
                    if is_last:
                        self._finish(ending)
                except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever a library has)
                    self._tell(error)
                    next_try = time.monotonic() + RETRY_S
            if is_last:
                return self.state["fault"] is None
            ending.came.wait(POLL_S)

    def _send(self, at_end: bool) -> None:
        """Open the run where it is not open, and send the steps that are whole.

        A step counts as sent before it is: killed in between, it is missing and not there twice.
        """
        if self.writer is None:
            self.writer = WRITERS[self.tracker](self.run, self.state["id"])
            self.keep(id=self.writer.run_id, fault=None)
        for step, metrics in self.steps.whole(self.state["step"], at_end):
            before = self.state["step"]
            self.keep(step=step, fault=None)
            try:
                self.writer.log(metrics, step)
            except BaseException:
                self.keep(step=before)
                raise

    def _finish(self, ending: Ending) -> None:
        assert self.writer is not None
        step = max(self.state["step"], 0)
        if self.run.table is not None:
            step += 1
            self.keep(step=step)
            self.writer.show(Path(self.run.table), step)
        summary = {f"final/{name}": value for name, value in numbers(ending.summary).items()}
        self.writer.finish(ending.status, summary, step)
        self.keep(fault=None)

    def _tell(self, error: BaseException) -> None:
        """Keep a fault, and tell the first one, in one line without anybody's secrets."""
        fault = without_secrets(f"{type(error).__name__}: {one_line(error)}"[:300], os.environ)
        if not self.is_told:
            self.is_told = True
            print(
                f"tracking: {self.tracker}: {fault}; nothing else depends on it, and it is tried "
                f"again as long as this runs; see {self.path.with_suffix('.txt')}",
                file=self.told,
                flush=True,
            )
        with contextlib.suppress(OSError):
            self.keep(fault=fault)


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """Return a text without logins in URLs, and without the keys that an environment holds.

    >>> without_secrets("https://me:word@host refuses abcdefgh", {"WANDB_API_KEY": "abcdefgh"})
    'https://***@host refuses ***'
    """
    for name, value in environment.items():
        if SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return LOGIN.sub("//***@", text)


def main() -> int:
    """Return 0 when all was sent, 1 when not; late it ends with `EXIT_LATE`."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # it ends with the stage, which is asked to stop too
    told = os.fdopen(os.dup(2), "w", encoding="utf-8")
    os.dup2(1, 2)
    job = json.loads(sys.stdin.readline())
    ending = Ending(sys.stdin)
    run_dir, tracker = Path(job["run_dir"]), job["tracker"]
    while True:
        try:
            with lock(run_dir / TRACKING / f"{tracker}.lock"):
                run = TrackedRun(**job["run"])
                return 0 if Follower(tracker, run, run_dir, told).follow(ending) else 1
        except LockedError as holder:  # of an earlier attempt, which has still something to send
            if ending.came.wait(POLL_S):
                print(f"tracking: {tracker}: is written to by {holder}", file=told, flush=True)
                return 1


if __name__ == "__main__":
    sys.exit(main())
