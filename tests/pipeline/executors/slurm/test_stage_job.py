"""A job: the job file of its worker, and the signal that it waits for."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.executors.slurm import stage_job
from pipeline.executors.slurm.queue import SlurmError
from pipeline.executors.slurm.sbatch import python_command
from pipeline.executors.slurm.stage_job import worker_environment


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_during_the_imports_is_kept_for_the_job(number: int) -> None:
    program = """
import signal, sys
print("importing", flush=True)
sys.stdin.readline()
from pipeline.executors.slurm.stage_job import listen
for known in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(known, lambda number, frame: print("signal", flush=True))
print("listening", flush=True)
listen()
print("working", flush=True)
"""
    command = f"exec {python_command(sys.executable)} -c {shlex.quote(program)}"
    job = subprocess.Popen(
        ["bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None and job.stdout.readline() == "importing\n"
    job.send_signal(number)
    assert job.communicate("\n")[0].split() == ["listening", "signal", "working"]
    assert job.returncode == 0


def test_several_processes_get_what_torchrun_would_give_them() -> None:
    job = SimpleNamespace(
        num_tasks=4, num_nodes=2, raw_job_id="12", hostnames=["n1", "n2"], global_rank=3,
        local_rank=1,
    )  # fmt: skip
    inner = worker_environment({"SLURM_CPUS_PER_TASK": "6", "SLURM_RESTART_COUNT": "2"}, job)
    assert inner["OMP_NUM_THREADS"] == "6"
    assert inner["MASTER_ADDR"] == "n1" and inner["MASTER_PORT"] == str(20_000 + 12 * 31 + 2)
    assert (inner["RANK"], inner["WORLD_SIZE"]) == ("3", "4")
    assert (inner["LOCAL_RANK"], inner["LOCAL_WORLD_SIZE"]) == ("1", "2")
    alone = worker_environment({}, SimpleNamespace(num_tasks=1))
    assert "RANK" not in alone and alone["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("said", "passes"), [
    ("scontrol: Unable to contact slurm controller (connect failure)", True),
    ("squeue: Socket timed out on send/recv operation", True),
    ("scontrol: no answer within 60 s", True),
    ("scontrol: Requested operation is presently disabled for job 15", False),
    ("scontrol: Access/permission denied for job 15", False),
])  # fmt: skip
def test_refusals_that_pass_and_those_that_last(said: str, passes: bool) -> None:
    assert stage_job.passes(SlurmError(said)) is passes


def stopped_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list) -> list[list[str]]:
    """Ask a job to end before its worker has started; return what it asked SLURM."""
    asked = []

    def call(command: list[str]) -> str:
        asked.append(command)
        answer = answers.pop(0)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr(stage_job, "call", call)
    monkeypatch.setattr(stage_job, "RETRY_S", 0.0)
    monkeypatch.setattr(stage_job, "start_worker", None)  # it must not be called
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    monkeypatch.setattr(stage_job, "listen", lambda: signal.raise_signal(signal.SIGTERM))
    (tmp_path / "job.json").write_text("{}", encoding="utf-8")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError, match="interrupted; saved"):
            stage_job.StageJob(str(tmp_path))()
    finally:
        signal.signal(signal.SIGTERM, before)
    return asked


def test_a_job_that_may_not_be_put_back_ends_at_once_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = SlurmError("squeue: Unable to contact slurm controller (connect failure)")
    refused = SlurmError("scontrol: Requested operation is presently disabled for job 15")
    asked = stopped_job(tmp_path, monkeypatch, [away, "RUNNING\n", refused, "RUNNING\n"])
    assert [command[0] for command in asked] == ["squeue", "squeue", "scontrol", "squeue"]
    reason = (tmp_path / "failure.json").read_text(encoding="utf-8")
    assert "presently disabled" in reason and "run goes on" in reason


def test_a_job_that_slurm_put_back_itself_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = SlurmError("scontrol: Job is pending execution for job 15")
    stopped_job(tmp_path, monkeypatch, ["RUNNING\n", refused, "COMPLETING\n"])
    assert not (tmp_path / "failure.json").exists()


def test_a_cancelled_job_is_not_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(stopped_job(tmp_path, monkeypatch, ["COMPLETING\n"])) == 1
    assert not (tmp_path / "failure.json").exists()


def test_what_starts_the_stage_may_be_missing_on_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    monkeypatch.setattr(stage_job, "listen", lambda: None)
    monkeypatch.setenv("STAGE_PYTHON", '["no-apptainer", "exec", "x.sif", "python"]')
    (tmp_path / "job.json").write_text("{}", encoding="utf-8")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError) as error:
            stage_job.StageJob(str(tmp_path))()
    finally:
        signal.signal(signal.SIGTERM, before)
    words = str(error.value)
    assert words.startswith("no-apptainer: No such file or directory on ")
    assert words.endswith("a line of `setup` may load it, or correct container.command")
    assert json.loads((tmp_path / "failure.json").read_text("utf-8"))["reason"] == words
