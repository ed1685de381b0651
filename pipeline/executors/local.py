"""Run the stages of a plan on this machine, in child processes, with live progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.config.schema import PipelineConfig
from pipeline.executors.child import Child, stop
from pipeline.executors.progress import Progress
from pipeline.plan.build import Plan
from pipeline.stages.run_folder import (
    METRICS,
    State,
    check_config,
    first_broken,
    prepare,
    read_state,
)
from pipeline.stages.stage import STAGE_KINDS, Stage
from pipeline.worker import NOTE

POLL_S = 0.5
MAX_NOTES = 20


def check_before_start(plan: Plan, states: dict[str, State], *, here: bool = True) -> list[str]:
    """Ask every stage that still has to run whether it can: data, images, configs, checkpoints.

    Returns what stops nothing but should be known, such as boxes that training leaves out. `here`
    asks too whether this machine has the GPUs; elsewhere the cluster knows.

    Raises:
        ValueError: one line for every fault.
    """
    waiting = [stage for stage in plan.stages if states[stage.name].status != "done"]
    for stage in plan.stages:
        check_config(stage)
    jobs: dict[str, dict[str, Any]] = {}
    for stage in waiting:
        settings = stage.settings | ({"seed": 0} if stage.seed is not None else {})
        job = {"module": STAGE_KINDS[stage.kind].module, "settings": settings, "here": here}
        named = job | {"source": stage.source}
        jobs.setdefault(json.dumps(job, sort_keys=True), named)  # seeds share one check
    if not jobs:
        return []
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
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the check before the start broke: {last}")
    notes = [line for line in answer.stdout.splitlines() if line.startswith(NOTE)]
    hidden = len(notes) - MAX_NOTES
    more = [f"{NOTE}{hidden} more; tools/check_data.py shows them all"] if hidden > 0 else []
    return notes[:MAX_NOTES] + more


def run_local(plan: Plan, progress: Progress) -> dict[str, State]:
    """Run what is not done yet, up to `plan.config.num_parallel` stages at a time.

    Stages start in the plan's order as soon as their inputs are done; a failed one keeps those that
    need it from running, the others go on. Returns the state of every stage at the end.

    Raises:
        KeyboardInterrupt: the run was asked to stop; no stage is left at work.
    """
    states = {stage.name: read_state(stage) for stage in plan.stages}
    waiting = [stage for stage in plan.stages if states[stage.name].status != "done"]
    states |= {stage.name: State("missing") for stage in waiting}  # what failed is tried again
    running: list[Child] = []
    try:
        while waiting or running:
            waiting = _start_ready(waiting, running, states, progress, plan.config)
            for child in list(running):
                if child.is_running():
                    progress.update(child.stage, child.stage.run_dir / METRICS)
                    continue
                running.remove(child)
                state, interrupted = child.ended()
                states[child.stage.name] = state
                progress.ended(child.stage, state, time.monotonic() - child.begun)
                if interrupted:
                    raise KeyboardInterrupt
            time.sleep(POLL_S if running else 0)
    finally:
        stop(running)
    return states


def _start_ready(
    waiting: list[Stage],
    running: list[Child],
    states: dict[str, State],
    progress: Progress,
    config: PipelineConfig,
) -> list[Stage]:
    """Start what can run now, mark what never can; return the stages that still have to wait."""
    left = []
    for stage in waiting:
        broken = first_broken(stage.inputs.values(), states)
        if broken is not None:
            states[stage.name] = State("failed", broken)
            progress.skipped(stage, broken)
        elif len(running) < config.num_parallel and all(
            states[source.name].status == "done" for source in stage.inputs.values()
        ):
            prepare(stage)
            progress.started(stage)
            num_processes = config.resources.of(stage.kind).tasks_per_node(stage.kind)
            num_threads = max(1, num_cpus() // (config.num_parallel * num_processes))
            running.append(Child(stage, num_threads, num_processes))
        else:
            left.append(stage)
    return left


def num_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))
