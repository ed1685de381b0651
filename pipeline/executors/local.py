"""A plan on this machine: its stages in child processes, with live progress."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config.schema import PipelineConfig
from pipeline.executors.progress import Progress
from pipeline.plan.plan import Plan
from pipeline.stages.files import write_json
from pipeline.stages.provenance import with_this_code
from pipeline.stages.run_folder import (
    EXIT_INTERRUPTED,
    EXIT_LOCKED,
    FAILURE,
    LOG,
    METRICS,
    State,
    first_broken,
    prepare,
    read_state,
    read_states,
)
from pipeline.stages.stage import Stage

POLL_S = 0.5
STOP_WAIT_S = 60.0
LAST_WORDS_S = 30.0


def run_local(plan: Plan, progress: Progress) -> dict[str, State]:
    """Run what is not done yet, up to `plan.config.num_parallel` stages at a time.

    Stages start in the plan's order as soon as their inputs are done; a failed one keeps those that
    need it from running, the others go on. Returns the state of every stage at the end.

    Raises:
        KeyboardInterrupt: the run was asked to stop; no stage is left at work.
    """
    states = read_states(plan.stages)
    waiting = [stage for stage in plan.distinct if states[stage.name].status != "done"]
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
        stop([process for child in running for process in child.processes])
    of_folder = {stage.run_dir: states[stage.name] for stage in plan.distinct}
    return {stage.name: of_folder[stage.run_dir] for stage in plan.stages}


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
            num_threads = max(
                1, len(os.sched_getaffinity(0)) // (config.num_parallel * num_processes)
            )
            running.append(Child(stage, num_threads, num_processes))
        else:
            left.append(stage)
    return left


class Child:
    """The processes of one stage, the first one's words going to the stage's log.

    Several have torchrun's variables in their environment; the first one writes the run folder.
    """

    def __init__(self, stage: Stage, num_threads: int, num_processes: int = 1) -> None:
        self.stage = stage
        self.begun = time.monotonic()
        self.alone_since: float | None = None
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        environment.setdefault("OMP_NUM_THREADS", str(num_threads))
        if num_processes > 1:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = str(listener.getsockname()[1])
            number = str(num_processes)
            environment |= {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes = []
        for rank in range(num_processes):
            if num_processes > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.processes.append(start_worker(stage.run_dir.absolute(), environment, rank))
        self.process, *self.others = self.processes

    def is_running(self) -> bool:
        """Return whether the first process is at work; without one of the others it is ended."""
        running = self.process.poll() is None
        broken = any(other.poll() not in (None, 0, EXIT_INTERRUPTED) for other in self.others)
        if running and broken:
            self.alone_since = self.alone_since or time.monotonic()
            if time.monotonic() - self.alone_since > LAST_WORDS_S:
                self.process.kill()
        return running

    def ended(self) -> tuple[State, bool]:
        """Return the state that the ended processes left, and whether they were interrupted."""
        stop(self.others)
        state, code = read_state(self.stage), self.process.returncode
        log = self.stage.run_dir / LOG
        interrupted = code in (EXIT_INTERRUPTED, -signal.SIGTERM)
        if code == EXIT_LOCKED or state.status == "running":
            return State("failed", f"is being worked on by another process; see {log}"), False
        if state.status == "missing" and not interrupted:
            reason = f"ended with code {code} and no word; see {log}"
            write_json(self.stage.run_dir / FAILURE, {"reason": reason})
            return State("failed", reason), False
        return state, interrupted and state.status == "missing"


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to save and end; kill those that do not within a minute."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_WAIT_S
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_worker(
    run_dir: Path, environment: Mapping[str, str], rank: int
) -> subprocess.Popen[bytes]:
    """Start one process of the stage prepared in `run_dir`; its words go to a log there."""
    with (run_dir / (LOG if rank == 0 else f"log-rank{rank}.txt")).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.worker", "run", str(run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=with_this_code(environment),
        )
