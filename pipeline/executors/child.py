"""A stage at work on this machine: one child process, or one for each of its GPUs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable

from pipeline.stages.files import write_json
from pipeline.stages.run_folder import FAILURE, LOG, State, read_state
from pipeline.stages.stage import Stage
from pipeline.worker import EXIT_INTERRUPTED, EXIT_LOCKED

STOP_WAIT_S = 60.0
LAST_WORDS_S = 30.0


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
            number = str(num_processes)
            environment |= {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self.process = self._start(environment, 0, num_processes)
        self.others = [
            self._start(environment, rank, num_processes) for rank in range(1, num_processes)
        ]

    def _start(self, environment: dict[str, str], rank: int, size: int) -> subprocess.Popen[bytes]:
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
        name = LOG if rank == 0 else f"log-rank{rank}.txt"
        with (self.stage.run_dir / name).open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pipeline.worker",
                    "run",
                    str(self.stage.run_dir.absolute()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment | ranks,
            )

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Return all processes, the first one first."""
        return [self.process, *self.others]

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
        stop_processes(self.others)
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


def stop(children: Iterable[Child]) -> None:
    """Ask children to save and end; kill those that do not within a minute."""
    stop_processes([process for child in children for process in child.processes])


def stop_processes(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end; kill those that do not within a minute."""
    processes = list(processes)
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_WAIT_S
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
