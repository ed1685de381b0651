"""A plan on this machine: stages in child processes, their progress, probes that came late."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import progress as bars
from rich.console import Console

from pipeline.config.schema import PipelineConfig
from pipeline.executors.gpus import GpuPool, gpus_of, visible_gpus
from pipeline.plan.plan import Plan
from pipeline.report.remarks import conversion_warnings
from pipeline.stages.files import last_json_line, read_json, write_json
from pipeline.stages.provenance import VISIBLE_GPUS, with_this_code
from pipeline.stages.run_folder import (
    EXIT_INTERRUPTED,
    EXIT_LOCKED,
    FAILURE,
    JOB,
    LATE_PROBE,
    LOG,
    MANIFEST,
    METRICS,
    State,
    first_broken,
    prepare,
    read_state,
    read_states,
)
from pipeline.stages.stage import STAGE_KINDS, Stage
from pipeline.stages.staleness import TAKEN_FROM
from pipeline.tracking.child import stage_faults
from pretrain.config.base import identity
from pretrain.config.pretrain import PretrainConfig
from pretrain.runtime.bars import FittingProgress, Pairs

POLL_S = 0.5
STOP_WAIT_S = 60.0
LAST_WORDS_S = 30.0
LINE_EVERY_S = 15.0
# glibc keeps up to 256 MB of freed memory for the next step, in pages of 2 MB where Linux has any;
# otherwise each step on a CPU has its larger blocks mapped and zeroed anew.
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("hugetlb", 1), ("trim_threshold", 2**28), ("mmap_threshold", 2**28))
)


def run_local(plan: Plan, progress: Progress) -> dict[str, State]:
    """Run what is not done yet, up to `plan.config.num_parallel` stages at a time.

    Stages start in the plan's order as soon as their inputs are done and, where the machine has
    GPUs, as many are free as they compute on. A failed one keeps those that need it from running,
    the others go on. Returns the state of every stage at the end.

    Raises:
        KeyboardInterrupt: the run was asked to stop; no stage is left at work.
    """
    states = read_states(plan.stages)
    waiting = [stage for stage in plan.distinct if states[stage.name].status != "done"]
    states |= {stage.name: State("missing") for stage in waiting}  # what failed is tried again
    running: list[Child] = []
    pool = GpuPool(visible_gpus() if waiting else ())
    try:
        while waiting or running:
            waiting = _start_ready(waiting, running, states, progress, plan.config, pool)
            for child in list(running):
                if child.is_running():
                    progress.update(child.stage, child.stage.run_dir / METRICS)
                    continue
                running.remove(child)
                pool.give_back(child.gpus)
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
    pool: GpuPool,
) -> list[Stage]:
    """Start what can run now, mark what never can; return the stages that still have to wait."""
    left = []
    for stage in waiting:
        broken = first_broken(stage.inputs.values(), states)
        if broken is not None:
            states[stage.name] = State("missing", broken)
            progress.skipped(stage, broken)
            continue
        is_ready = all(states[source.name].status == "done" for source in stage.inputs.values())
        gpus = None
        if is_ready and len(running) < config.num_parallel:
            gpus = pool.take(gpus_of(stage, config.resources))
        if gpus is None:
            left.append(stage)
        else:
            prepare(stage, config.tracking.trackers(config.name))
            progress.started(stage)
            num_processes = config.resources.of(stage.kind).tasks_per_node(stage.kind)
            num_threads = max(
                1, len(os.sched_getaffinity(0)) // (config.num_parallel * num_processes)
            )
            visible = gpus if pool.names else None
            running.append(Child(stage, num_threads, num_processes, visible))
    return left


class Child:
    """The processes of one stage, the first one's words going to the stage's log.

    Several have torchrun's variables in their environment; the first one writes the run folder.
    They see `gpus` alone; what the executor sees where it is None.
    """

    def __init__(
        self,
        stage: Stage,
        num_threads: int,
        num_processes: int = 1,
        gpus: tuple[str, ...] | None = None,
    ) -> None:
        self.stage = stage
        self.gpus = gpus or ()
        self.begun = time.monotonic()
        self.alone_since: float | None = None
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        environment.setdefault("OMP_NUM_THREADS", str(num_threads))
        if gpus is not None:
            environment[VISIBLE_GPUS] = ",".join(gpus)
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
    run_dir: Path,
    environment: Mapping[str, str],
    rank: int,
    python: Sequence[str] = (sys.executable,),
) -> subprocess.Popen[bytes]:
    """Start one process of the stage prepared in `run_dir`; its words go to a log there.

    `python` are the words that start Python, where it is another one than this.
    """
    with (run_dir / (LOG if rank == 0 else f"log-rank{rank}.txt")).open("ab") as log:
        return subprocess.Popen(
            [*python, "-m", "pipeline.worker", "run", str(run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=with_this_code({"GLIBC_TUNABLES": TUNABLES, **environment}),
        )


class Progress:
    """Follows stages through their `metrics.jsonl`: `step`, `max_steps`, and what they log."""

    def __init__(self, console: Console, num_stages: int, num_done: int) -> None:
        self.console = console
        self.num_stages = num_stages
        self.num_over = num_done
        self.tasks: dict[str, bars.TaskID] = {}
        self.last_lines: dict[str, float] = {}
        bar, elapsed = bars.BarColumn(bar_width=24), bars.TimeElapsedColumn()
        left, note = bars.TimeRemainingColumn(), Pairs()
        self.bars = FittingProgress(
            bars.TextColumn("{task.description}"),
            *(bar, bars.MofNCompleteColumn(), elapsed, left, note),
            dispensable=(bar, elapsed, note, left),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def started(self, stage: Stage) -> None:
        """A stage begins."""
        self.last_lines[stage.name] = time.monotonic()
        if self.console.is_terminal:
            self.tasks[stage.name] = self.bars.add_task(stage.name, total=None, note="")
        else:
            self._print(f"{stage.name} ...")

    def update(self, stage: Stage, metrics: Path) -> None:
        """Show the last line that the stage logged."""
        entry = last_json_line(metrics)
        if entry is None:
            return
        step, total = entry.get("step", 0), entry.get("max_steps")
        note = "training  " + "  ".join(
            f"{key} {entry[key]:.4g}"
            for key in ("loss", "total_loss", "lr", "images_per_s", "bbox/AP")
            if isinstance(entry.get(key), int | float)
        )
        note = str(entry.get("doing", note))  # beside training, such as an evaluation
        if stage.name in self.tasks:
            self.bars.update(self.tasks[stage.name], completed=step, total=total, note=note)
        elif time.monotonic() - self.last_lines[stage.name] > LINE_EVERY_S:
            self.last_lines[stage.name] = time.monotonic()
            self._print(f"    {stage.name}: step {step:.0f} of {total}  {note}")

    def ended(self, stage: Stage, state: State, seconds: float) -> None:
        """A stage is over."""
        if stage.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(stage.name))
        text = f"{self._count()} {stage.name}: {state.status}, {seconds:.0f} s"
        manifest = stage.run_dir / MANIFEST
        if state.status == "done" and (folder := read_json(manifest).get(TAKEN_FROM)):
            text += f": taken over from {folder}, made from the same bytes"
        if state.reason:
            text += f": {state.reason} (log: {stage.run_dir / LOG})"
        self._print(text, style="red" if state.status == "failed" else None)
        if stage.kind == "convert" and state.status == "done":
            for line in conversion_warnings(stage):
                self._print(f"    {line}", style="yellow")
        for tracker, fault in stage_faults(stage.run_dir).items():
            self._print(f"    {tracker} has not all of it: {fault}", style="yellow")

    def skipped(self, stage: Stage, reason: str) -> None:
        """A stage cannot run."""
        self._print(f"{self._count()} {stage.name}: not run, {reason}", style="red")

    def _count(self) -> str:
        self.num_over += 1
        return f"[{self.num_over}/{self.num_stages}]"

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, markup=False, highlight=False, style=style, soft_wrap=True)


def late_probes(plan: Plan, states: dict[str, State]) -> dict[str, tuple[Stage, list[str]]]:
    """Return finished pretrainings whose `probe:` is not measured, with the states they kept."""
    late = {}
    for stage in plan.distinct:
        if stage.kind != "pretrain" or states[stage.name].status != "done":
            continue
        config = PretrainConfig.model_validate(stage.settings)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if config.probe is None or read_json(stage.run_dir / JOB)["settings"]["probe"]:
                continue
            stored = {}
            if (stage.run_dir / LATE_PROBE).exists():
                stored = read_json(stage.run_dir / LATE_PROBE)
            if not (stored.get("complete") and stored["probe"] == identity(config.probe)):
                late[stage.name] = stage, kept_states(stage.run_dir, config)
    return late


def kept_states(folder: Path, config: PretrainConfig) -> list[str]:
    """Return the files of states of epochs at which the probe measures, and the last one's."""
    assert config.probe is not None
    every, names = config.probe.every_epochs, []
    for path in sorted(folder.glob("epoch_*.pth")):
        number = re.fullmatch(r"epoch_(\d+)\.pth", path.name)
        if number is not None and int(number[1]) % every == 0:
            names.append(path.name)
    return names + (["last.pth"] if (folder / "last.pth").exists() else [])


def late_probe_lines(plan: Plan, states: dict[str, State]) -> list[str]:
    """Return a line for every finished pretraining whose `probe:` came later."""
    lines = []
    for name, (stage, kept) in late_probes(plan, states).items():
        if kept:
            lines.append(
                f"{name}: probe: came after it was finished; run on this machine (or run --only "
                f"{name}) measures it on the states that were kept: {', '.join(kept)}"
            )
        else:
            lines.append(
                f"{name}: probe: came after it was finished, and no state of such an epoch was "
                f"kept (keep_every_epochs); python tools/probe.py {stage.result} measures its end"
            )
    return lines


def measure_late_probes(plan: Plan, states: dict[str, State]) -> list[str]:
    """Measure them in child processes, one after the other; return what went wrong."""
    faults = []
    for name, (stage, kept) in late_probes(plan, states).items():
        if not kept:
            continue
        with tempfile.TemporaryDirectory() as folder, (stage.run_dir / LOG).open("ab") as log:
            job = Path(folder) / "job.json"
            module = STAGE_KINDS[stage.kind].module
            write_json(job, {"module": module, "settings": stage.settings})
            command = [sys.executable, "-m", "pipeline.worker", "probe"]
            child = subprocess.run(
                [*command, str(stage.run_dir.absolute()), str(job)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=with_this_code(os.environ),
                check=False,
            )
        if child.returncode != 0:
            faults.append(f"{name}: probe: was not measured; see {stage.run_dir / LOG}")
    return faults
