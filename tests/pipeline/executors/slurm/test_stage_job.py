"""A job: the job file of its worker, and the signal that it waits for."""

import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

from pipeline.executors.slurm.sbatch import python_command
from pipeline.executors.slurm.stage_job import worker_environment


def test_a_signal_during_the_imports_is_kept_for_the_job() -> None:
    program = """
import signal, sys
print("importing", flush=True)
sys.stdin.readline()
from pipeline.executors.slurm.stage_job import listen
signal.signal(signal.SIGUSR2, lambda number, frame: print("signal", flush=True))
print("listening", flush=True)
listen()
print("working", flush=True)
"""
    command = f"exec {python_command(sys.executable)} -c {shlex.quote(program)}"
    job = subprocess.Popen(
        ["bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None and job.stdout.readline() == "importing\n"
    job.send_signal(signal.SIGUSR2)
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
