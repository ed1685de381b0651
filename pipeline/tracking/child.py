"""Trackers beside a stage or a report: one process each, started and ended with it.

Nothing that becomes of them is raised: a tracker that fails stops no training.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.config.tracking import TrackingConfig
from pipeline.config.yaml_files import parse, validated
from pipeline.stages.files import read_json, write_json
from pipeline.stages.provenance import with_this_code
from pipeline.stages.run_folder import EXIT_INTERRUPTED, JOB, TRACKING
from pipeline.stages.stage import canonical_json
from pipeline.tracking.follow import EXIT_LATE, LAST_WORDS_S
from pipeline.tracking.writers import Status, TrackedRun

INTERRUPTED_S = 10.0  # a cluster kills who has not ended soon
STOPPED = (EXIT_INTERRUPTED, 130, 143)  # exit codes; the others are of shells
MORE_S = 5.0  # than a tracker takes to end by itself
logger = logging.getLogger(__name__)


class Tracking:
    """The trackers of a stage while it runs; `summary` are its results, once there are any.

    `trackers` are the settings of each by name, `run` is what all of them show.
    """

    def __init__(
        self, trackers: Mapping[str, dict[str, Any]], run: TrackedRun, run_dir: Path
    ) -> None:
        self.trackers, self.run, self.run_dir = trackers, run, run_dir
        self.children: dict[str, subprocess.Popen[str]] = {}
        self.summary: Mapping[str, float | None] = {}

    def __enter__(self) -> Self:
        """Start them."""
        for name, settings in self.trackers.items():
            run = asdict(self.run) | {"settings": settings}
            job = {"tracker": name, "run_dir": str(self.run_dir), "run": run}
            try:
                self._start(name, job)
            except OSError as error:
                logger.warning("tracking: %s: cannot be started: %s", name, error)
        return self

    def _start(self, name: str, job: dict[str, Any]) -> None:
        folder = self.run_dir / TRACKING
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.txt").open("ab") as words:
            child = self.children[name] = subprocess.Popen(
                [sys.executable, "-m", "pipeline.tracking.follow"],
                stdin=subprocess.PIPE,
                stdout=words,
                start_new_session=True,  # no signal to the stage is one to them
                env=with_this_code(os.environ),
                text=True,
            )
        _say(child, job)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell them how the stage ended, and wait until they have sent the rest, but not for long.

        One that is still busy then is ended; what it has not sent is where it says.
        """
        status: Status = "finished" if error is None else "failed"
        stopped = isinstance(error, SystemExit) and error.code in STOPPED
        if stopped or isinstance(error, KeyboardInterrupt):
            status = "interrupted"
        patience_s = INTERRUPTED_S if status == "interrupted" else LAST_WORDS_S
        last = {"status": status, "summary": dict(self.summary), "patience_s": patience_s}
        for child in self.children.values():
            _say(child, last)
        deadline = time.monotonic() + patience_s + MORE_S
        for name, child in self.children.items():
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            with contextlib.suppress(BrokenPipeError):
                assert child.stdin is not None
                child.stdin.close()
            if child.returncode != 0 and fault_of(self.run_dir, name) is None:  # not told yet
                late = child.returncode in (EXIT_LATE, -signal.SIGKILL)
                why = f"was not done in {patience_s:.0f} s" if late else "ended by itself"
                logger.warning(
                    "tracking: %s: %s (code %d), perhaps not all was sent; see %s",
                    name, why, child.returncode, self.run_dir / TRACKING / f"{name}.txt",
                )  # fmt: skip


def _say(child: subprocess.Popen[str], what: dict[str, Any]) -> None:
    """Write a line to a process; one that has ended is told of when it is waited for."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(what) + "\n")
        child.stdin.flush()


def fault_of(run_dir: Path, tracker: str) -> str | None:
    """Return why a tracker has not all of a run, as it was when it last tried, or None."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        fault = read_json(run_dir / TRACKING / f"{tracker}.json")["fault"]
        return None if fault is None else str(fault)
    return None


def stage_faults(run_dir: Path) -> dict[str, str]:
    """Return why trackers of a stage have not all of it, by their names."""
    trackers: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        trackers = read_json(run_dir / JOB)["tracking"]["trackers"]
    faults = {name: fault_of(run_dir, name) for name in trackers}
    return {name: fault for name, fault in faults.items() if fault is not None}


def stage_tracking(run_dir: Path, job: Mapping[str, Any], config: dict[str, Any]) -> Tracking:
    """Return the trackers of a stage; `config` is what of its settings can change its result."""
    told = job.get("tracking") or {"trackers": {}, "folder": "", "labels": {}}
    run = TrackedRun({}, told["folder"], job["name"], job["stage"], told["labels"], config)
    return Tracking(told["trackers"], run, run_dir)


def track_report(trackers: Mapping[str, dict[str, Any]], folder: Path) -> None:
    """Show a report's table and the means in it in a run of their own, where they are new there.

    `folder` has `results.json` and `results.csv`.
    """
    if not trackers:
        return
    table, results = folder / "results.csv", read_json(folder / "results.json")
    means = {
        f"{line['backbone']}/{line['task']}/{line['metric']}": line["mean"]
        for line in results["summary"]
    } | {
        f"{line['backbone']}/{line['probe']}/{name}": value
        for line in results["probes"]
        for name, value in line["metrics"].items()
    }
    digest = hashlib.sha256(table.read_bytes() + canonical_json(means).encode()).hexdigest()
    marker, shown = folder / TRACKING / "shown.json", {}
    with contextlib.suppress(OSError, ValueError):
        shown = read_json(marker)
    new = {name: each for name, each in trackers.items() if shown.get(name) != digest}
    has_rows = table.read_bytes().count(b"\n") > 1
    rows, place = str(table.absolute()) if has_rows else None, str(folder.parent.absolute())
    run = TrackedRun({}, place, "report", "report", {}, {}, rows)
    with Tracking(new, run, folder.absolute()) as tracking:
        tracking.summary = means
    sent = [name for name, each in tracking.children.items() if each.returncode == 0]
    if sent:
        with contextlib.suppress(OSError):  # it is sent once more then
            write_json(marker, shown | dict.fromkeys(sent, digest))


def tracking_by_hand(text: str, folder: Path, config: dict[str, Any]) -> Tracking:
    """Return the trackers of a run without a pipeline; `text` is a `tracking:` section in YAML.

    Raises:
        ValueError: it is none, or a library is not installed.
    """
    content = parse(text)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{text}: wanted the trackers, such as '{{wandb: {{}}}}'")
    settings = validated(TrackingConfig, content, "trackers")
    if faults := settings.faults():
        raise ValueError("\n".join(faults))
    folder = folder.absolute()
    run = TrackedRun({}, str(folder), folder.name, "by hand", {}, config)
    return Tracking(settings.trackers(folder.parent.name), run, folder)
