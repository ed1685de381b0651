"""Run the stages of a plan on this machine: one child process at a time, with live progress."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.stage import STAGE_KINDS, Stage
from pipeline.store import LOG, METRICS, State, check_config, prepare, read_state
from pipeline.worker import EXIT_INTERRUPTED

POLL_S = 0.5
STOP_WAIT_S = 60.0


def check_before_start(plan: Plan, states: dict[str, State]) -> None:
    """Ask every stage that still has to run whether it can: data, images, configs, checkpoints.

    Raises:
        ValueError: one line for every fault.
    """
    waiting = [stage for stage in plan.stages if states[stage.name].status != "done"]
    for stage in plan.stages:
        check_config(stage)
    jobs = {}
    for stage in waiting:
        settings = stage.settings | ({"seed": 0} if stage.seed is not None else {})
        job = {"module": STAGE_KINDS[stage.kind].module, "settings": settings}
        jobs[json.dumps(job, sort_keys=True)] = job  # seeds share one check
    if not jobs:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.json"
        path.write_text(json.dumps(list(jobs.values())), encoding="utf-8")
        answer = subprocess.run(
            [sys.executable, "-m", "pipeline.worker", "check", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
    if answer.returncode == 2:
        raise ValueError(answer.stdout.strip())
    if answer.returncode != 0:
        raise RuntimeError(f"the check before the start broke:\n{answer.stderr}")


def run_local(plan: Plan, progress: Progress) -> dict[str, State]:
    """Run what is not done yet, in order; return the state of every stage at the end.

    A failed stage keeps the stages that need it from running, the others go on.

    Raises:
        KeyboardInterrupt: the run was asked to stop; the stage at work has ended.
    """
    states = {stage.name: read_state(stage) for stage in plan.stages}
    for stage in plan.stages:
        if states[stage.name].status == "done":
            continue
        broken = first_broken(stage.inputs.values(), states)
        if broken is not None:
            states[stage.name] = State("failed", broken)
            progress.skipped(stage, broken)
            continue
        states[stage.name] = run_stage(stage, progress)
        if states[stage.name].status == "missing":
            raise KeyboardInterrupt
    return states


def first_broken(inputs: Iterable[Stage], states: dict[str, State]) -> str | None:
    """Return why a stage cannot run, or None when all its inputs are done."""
    for source in inputs:
        state = states[source.name]
        if state.status != "done":
            return f"needs {source.name}, which failed: {state.reason}"
    return None


def run_stage(stage: Stage, progress: Progress) -> State:
    """Run one stage in a child process and follow it; return how it ended."""
    prepare(stage)
    log_path = stage.run_dir / LOG
    progress.started(stage)
    begun = time.monotonic()
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "pipeline.worker", "run", str(stage.run_dir.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            while child.poll() is None:
                progress.update(stage, stage.run_dir / METRICS)
                time.sleep(POLL_S)
        except BaseException:
            stop(child)
            raise
    state = read_state(stage)
    interrupted = child.returncode in (EXIT_INTERRUPTED, -signal.SIGTERM)
    if state.status == "running":
        state = State("failed", f"is being worked on by another process; see {log_path}")
    elif state.status == "missing" and not interrupted:
        state = State("failed", f"ended with code {child.returncode} and no word; see {log_path}")
    progress.ended(stage, state, time.monotonic() - begun)
    return state


def stop(child: subprocess.Popen[bytes]) -> None:
    """Ask a child to save and end; kill it if it does not within a minute."""
    child.terminate()
    try:
        child.wait(STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
