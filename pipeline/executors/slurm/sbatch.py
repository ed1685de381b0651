"""The sbatch text of a job group, and the parameters that submitit writes it from."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from pipeline.config.schema import Resources, flag_name
from pipeline.executors.slurm.arrays import JobGroup
from pipeline.stages.provenance import STAGE_PYTHON

HOLD_BACK = (
    "import os, signal as s, sys; s.pthread_sigmask(s.SIG_BLOCK, [s.SIGUSR2, s.SIGTERM]); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
# Asked to end before the stage has taken over: there is nothing to save, only to wait again.
# The variables have names that `setup` hardly gives to its own.
PUT_BACK = """stage_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
stage_job=${stage_job:-$SLURM_JOB_ID}
# The controller may be away for a moment, and srun does not wait for it.
answered() {
    command -v scontrol >/dev/null || return
    for _ in $(seq 120); do
        scontrol --oneliner show job "$stage_job" 2>/dev/null && return
        sleep 5
    done
}
put_back() {
    answered | grep -q " JobState=RUNNING " || exit 1
    scontrol requeue "$stage_job" && sleep 60
    exit 1
}
trap put_back TERM USR2"""
WAIT_FOR_FOLDER = """for _ in $(seq 60); do [ -d "$stage_folder" ] && break; sleep 5; done
[ -d "$stage_folder" ] || [ "${SLURM_RESTART_COUNT:-0}" -ge 10 ] || put_back
exec >>"$stage_folder/batch-$stage_job.log" 2>&1"""
TAKEN_OVER = """cd -- "$SLURM_SUBMIT_DIR" || exit 1  # whatever the lines above did
answered >/dev/null
trap : TERM USR2  # the stage hears them itself
# Ended by one of them all the same, the stage had not even begun to hear.
ended() {
    case $1 in 140 | 143) [ "${SLURM_RESTART_COUNT:-0}" -ge 10 ] || put_back ;; esac
    exit "$1"
}"""


def dependency_words(group: JobGroup, job_ids: Mapping[str, str]) -> list[str]:
    """Return what `--dependency` joins, `job_ids` naming the groups that have been submitted."""
    words = []
    for needs in group.dependencies:
        job = needs.job_id or job_ids[needs.group]
        words.append(
            f"{needs.how}:{job}" if needs.task is None else f"{needs.how}:{job}_{needs.task}"
        )
    return words


def sbatch_parameters(
    group: JobGroup, job_name: str, dependency: str, folder: Path, code: Path
) -> dict[str, Any]:
    """Return the parameters of submitit's `SlurmExecutor`.

    No path is written on an `#SBATCH` line, where SLURM expands `%` and a newline would end it: the
    script itself redirects its output, once the folder is there.
    """
    resources = group.resources
    extra = {flag_name(name): value for name, value in resources.extra.items()}
    cpus = resources.cpus_per_task(group.kind)
    tasks_per_node = resources.tasks_per_node(group.kind)
    # since SLURM 22.05 srun takes no cores from the job; an `--export=NONE` of the job's it takes
    srun_args = [f"--cpus-per-task={cpus}", "--export=ALL"]
    if tasks_per_node * resources.nodes > 1:
        srun_args.append("--kill-on-bad-exit=1")
    at_a_time = min(group.num_tasks, resources.array_parallelism)
    array = {"array": f"{group.task_span}%{at_a_time}"} if group.is_array else {}
    parameters = {
        "job_name": job_name,
        "time": resources.timeout_min,
        "nodes": resources.nodes,
        "ntasks_per_node": tasks_per_node,
        "cpus_per_task": cpus,
        "gpus_per_node": resources.gpus or None,
        "mem": None if resources.mem_gb is None else f"{round(resources.mem_gb * 1024)}M",
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "dependency": dependency or None,
        "signal_delay_s": resources.save_s,
        "setup": setup_lines(resources, folder, code),
        "stderr_to_stdout": True,
        "srun_args": srun_args,
        "additional_parameters": {
            "kill-on-invalid-dep": "yes",
            "requeue": True,
            "output": "/dev/null",
            "export": "ALL",
        }
        | array
        | {name: value for name, value in extra.items() if value is not False},
    }
    return {"wckey": None} | {key: value for key, value in parameters.items() if value is not None}


def setup_lines(resources: Resources, folder: Path, code: Path) -> list[str]:
    """Return the shell lines before the command: folder, code, `setup`, what starts a stage.

    What starts it is JSON, which the job reads: no shell between it and the words of the config.
    """
    words = resources.container.python if resources.container else ()
    return [
        PUT_BACK,
        f"stage_folder={shlex.quote(str(folder))}",
        WAIT_FOR_FOLDER,
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1  # the folder it starts from may hold newer code",
        *resources.setup,
        *([f"export {STAGE_PYTHON}={shlex.quote(json.dumps(words))}"] if words else []),
        TAKEN_OVER,
    ]


def python_command(python: str) -> str:
    """Return the shell words that start Python with SLURM's signals held back.

    A signal that comes while it still imports neither ends the job nor is lost: the kernel keeps it
    until the job listens (`stage_job.listen`). Until it is held back it is ignored.
    """
    python = shlex.quote(python)
    return f'bash -c \'trap "" USR2 TERM; exec "$@"\' bash {python} -ISc {HOLD_BACK!r} {python}'


def sbatch_text(parameters: dict[str, Any], group: JobGroup, folder: Path, python: str) -> str:
    """Return the script for sbatch, written by submitit; `plan` shows the one that is submitted."""
    command = f"{python_command(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    command += " || ended $?"
    count = group.num_tasks if group.is_array else None
    return _make_sbatch_string(command=command, folder=folder, **parameters, map_count=count)


def options_of(script: str) -> set[str]:
    """Return the names of the options on a script's `#SBATCH` lines."""
    return set(re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE))
