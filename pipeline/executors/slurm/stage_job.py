"""The job of a stage: its worker as a child process, stopped and continued with the job.

submitit calls `checkpoint` when SLURM sends its signal, before a time limit or preemption: the
worker saves and ends, and submitit puts the job back into the queue.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.core.utils import DelayedSubmission, UncompletedJobError
from submitit.slurm.slurm import SlurmJobEnvironment

from pipeline.executors.local import start_worker
from pipeline.executors.slurm.plan_file import read_plan
from pipeline.executors.slurm.queue import SQUEUE, SlurmError, call
from pipeline.report.write import make_report
from pipeline.stages.files import append_json_line, read_json, write_json
from pipeline.stages.provenance import STAGE_PYTHON
from pipeline.stages.run_folder import (
    EXIT_INTERRUPTED,
    EXIT_LOCKED,
    FAILURE,
    HEARTBEAT,
    JOB,
    JOBS,
    LOG,
    MANIFEST,
)

PATIENCE_S = 600.0
RETRY_S = 5.0
BEAT_S = 60.0
WORKER_ATTEMPTS = 3
EXIT_NOT_STARTED = 127  # as shells say it
REASONS = {
    EXIT_LOCKED: "is being worked on by another process",
    -signal.SIGKILL: "was killed (signal 9), perhaps out of memory (mem_gb)",
}
# Words of SLURM while its controller is away; other refusals last.
PASSES = ("contact", "timed out", "no answer", "zero bytes", "connect", "transport", "temporarily")
STOPPED = (EXIT_INTERRUPTED, -signal.SIGUSR2, -signal.SIGTERM, -signal.SIGINT)


class _OverError(Exception):
    """The worker ended by itself while it was asked to stop."""


class StageJob:
    """Runs the stage prepared in `run_dir`; what submitit pickles is this path alone."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir

    def __call__(self) -> str:
        """Run the worker to its end.

        Raises:
            RuntimeError: the stage failed, so that SLURM counts the job as failed.
        """
        self.folder = Path(self.run_dir)
        self.environment = SlurmJobEnvironment()
        self.is_first = self.environment.global_rank == 0
        self.terminated = False
        self.worker: subprocess.Popen[bytes] | None = None
        signal.signal(signal.SIGTERM, self._terminate)
        try:
            listen()
            if self.is_first:
                threading.Thread(target=self._beat, daemon=True).start()
            code = self._work()
        except _OverError:
            code = self._code()
        except UncompletedJobError as error:
            self._note(ended=EXIT_INTERRUPTED)
            self._fail(
                f"saved, but not continued: {str(error).rstrip('.')}; a stage may take max_jobs "
                "jobs of timeout_min minutes; raise one of them and run again"
            )
            raise
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            code = EXIT_INTERRUPTED  # saved, but scontrol could not put it back
        return self._finish(code)

    def checkpoint(self) -> DelayedSubmission:
        """Have the worker save and end; return what goes on from there in the next job."""
        if self.worker is not None:
            os.kill(self.worker.pid, signal.SIGUSR2)  # not reaped, so the number is its own
            code = self._code()
            if code not in STOPPED:
                raise _OverError
            self._note(ended=code)
        return DelayedSubmission(StageJob(self.run_dir))

    def _work(self) -> int:
        """Run the worker; again after trouble that passes: a folder away, a lock of a dead job."""
        deadline = time.monotonic() + PATIENCE_S
        python = json.loads(os.environ.get(STAGE_PYTHON) or json.dumps([sys.executable]))
        attempts = 0
        while True:
            self._wait_for_folder()
            self._note(started=time.time())
            environment = worker_environment(os.environ, self.environment)
            rank = self.environment.global_rank
            if self.terminated:
                return EXIT_INTERRUPTED
            try:
                self.worker = start_worker(self.folder, environment, rank, python)
            except OSError as error:  # such as a node without apptainer
                self._fail(
                    f"{python[0]}: {error.strerror} on {self.environment.hostname}, and it starts "
                    "the stage; a line of `setup` may load it, or correct container.command"
                )
                return EXIT_NOT_STARTED
            if self.terminated:  # while it was started
                os.kill(self.worker.pid, signal.SIGTERM)
            code = self._code()
            if code == EXIT_LOCKED and time.monotonic() < deadline:
                time.sleep(RETRY_S)
                continue
            attempts += 1
            lost_folder = code not in (0, *STOPPED) and not (self.folder / JOB).exists()
            if not lost_folder or attempts == WORKER_ATTEMPTS:
                return code

    def _beat(self) -> None:
        """Touch a file once a minute: a job that SLURM still lists may have no process any more."""
        while True:
            with contextlib.suppress(OSError):
                (self.folder / HEARTBEAT).touch()
            time.sleep(BEAT_S)

    def _wait_for_folder(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (self.folder / JOB).exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.folder / JOB}: not there for {PATIENCE_S:.0f} s")
            time.sleep(RETRY_S)

    def _code(self) -> int:
        """Wait for the worker and return its exit code, negative if a signal ended it.

        A signal handler may call it while it waits: `Popen` would hold a lock, or reap the worker.
        """
        assert self.worker is not None
        end = os.waitid(os.P_PID, self.worker.pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Have the worker save: SLURM ends the job by `scancel`, or preempts it."""
        self.terminated = True
        if self.worker is not None:
            os.kill(self.worker.pid, signal.SIGTERM)

    def _finish(self, code: int) -> str:
        """Turn the worker's exit code into the job's end."""
        if not self.is_first:
            if code not in (0, *STOPPED):
                raise RuntimeError(f"process {self.environment.global_rank} ended with {code}")
            return "done"
        self._note(ended=code)
        if code == 0:
            return "done"
        if code in STOPPED:
            self._put_back()
            raise RuntimeError("interrupted; saved")  # SLURM says why: preempted, cancelled
        if not (self.folder / FAILURE).exists():
            reason = REASONS.get(code, f"ended with code {code} and no word")
            self._fail(f"{reason}; see {self.folder / LOG}")
        raise RuntimeError(str(read_json(self.folder / FAILURE).get("reason")))

    def _put_back(self) -> None:
        """Requeue this job if SLURM still counts it as running: nobody cancelled it.

        A refusal counts if the job runs on: SLURM may have put it back itself in the meantime.
        """
        deadline = time.monotonic() + PATIENCE_S
        job_id = self.environment.job_id
        refusal: SlurmError | None = None
        while time.monotonic() < deadline:
            try:
                state = call([*SQUEUE, f"--jobs={job_id}", "--format=%T"]).strip()
                if state not in ("RUNNING", ""):
                    return
                if refusal is not None:
                    self._fail(f"saved, but not put back into the queue ({refusal}); run goes on")
                    return
                call(["scontrol", "requeue", job_id])
                time.sleep(PATIENCE_S)  # SLURM ends this process
            except SlurmError as error:
                print(f"requeue {job_id}: {error}", file=sys.stderr, flush=True)
                if not passes(error):
                    refusal = error
                time.sleep(RETRY_S)

    def _fail(self, reason: str) -> None:
        if self.is_first and not (self.folder / MANIFEST).exists():
            write_json(self.folder / FAILURE, {"reason": reason[:1000]})

    def _note(self, **what: float) -> None:
        """Append to the run folder's list of jobs, for `status` where SLURM has forgotten them."""
        if self.is_first:
            environment = self.environment
            node = os.environ.get("SLURM_JOB_NODELIST", environment.hostname)
            entry = {"job": environment.job_id, "node": node, "time": time.time(), **what}
            append_json_line(self.folder / JOBS, entry)


class ReportJob:
    """Writes the report of the plan in `plan_file`, whatever became of its stages."""

    def __init__(self, plan_file: str) -> None:
        self.plan_file = plan_file

    def __call__(self) -> str:
        """Write the report."""
        listen()
        make_report(read_plan(Path(self.plan_file)))
        return "done"

    def checkpoint(self) -> DelayedSubmission:
        """Return the same again."""
        return DelayedSubmission(ReportJob(self.plan_file))


def listen() -> None:
    """Let SLURM's signals through; held back while Python and submitit were starting."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2, signal.SIGTERM])


def passes(refusal: SlurmError) -> bool:
    """Return whether SLURM may well answer otherwise in a moment.

    >>> passes(SlurmError("scontrol: Requested operation is presently disabled for job 7"))
    False
    """
    return any(word in str(refusal).lower() for word in PASSES)


def worker_environment(outer: Mapping[str, str], environment: Any) -> dict[str, str]:
    """Return a worker's environment: with several processes, torch.distributed's variables.

    The first node's name is the address. The port follows from the job id and how often the job was
    requeued, so that all processes agree and a new start does not meet the old one's socket.
    """
    inner = {"OMP_NUM_THREADS": outer.get("SLURM_CPUS_PER_TASK", "1"), **outer}
    inner["PYTHONUNBUFFERED"] = "1"
    if environment.num_tasks > 1:
        number = int(environment.raw_job_id) * 31 + int(outer.get("SLURM_RESTART_COUNT") or 0)
        inner |= {
            "MASTER_ADDR": environment.hostnames[0],
            "MASTER_PORT": str(20_000 + number % 40_000),
            "RANK": str(environment.global_rank),
            "WORLD_SIZE": str(environment.num_tasks),
            "LOCAL_RANK": str(environment.local_rank),
            "LOCAL_WORLD_SIZE": str(environment.num_tasks // environment.num_nodes),
        }
    return inner
