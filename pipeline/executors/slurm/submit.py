"""Submission: token first, then sbatch through submitit, then the job id."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedSubmissionError, UncompletedJobError

from pipeline.config.resources import REPORT
from pipeline.executors.slurm.arrays import JobGroup, job_groups, resource_faults
from pipeline.executors.slurm.ledger import (
    LEDGER,
    Submission,
    close_submissions,
    new_submission,
    read_ledger,
    write_submission,
)
from pipeline.executors.slurm.plan_file import write_plan
from pipeline.executors.slurm.queue import JobRow, SlurmError, call, read_queue
from pipeline.executors.slurm.sbatch import (
    dependency_words,
    python_command,
    sbatch_parameters,
    sbatch_text,
)
from pipeline.executors.slurm.snapshot import take_snapshot
from pipeline.executors.slurm.stage_job import ReportJob, StageJob
from pipeline.messages import one_line
from pipeline.plan.plan import Plan
from pipeline.stages.run_folder import prepare
from pipeline.stages.stage import Stage

IDS_A_CALL = 2000
WRITERS = 16


def settle(root: Path) -> tuple[list[Submission], dict[str, JobRow]]:
    """Adopt or cancel jobs that a crash left without bookkeeping; return ledger and queue.

    A submission without a job id whose job is in the queue is adopted if submitit's files for all
    its tasks are in place, else cancelled. One that is not in the queue was never accepted.

    Raises:
        SlurmError: the queue cannot be asked.
    """
    ledger = [entry for entry in read_ledger(root) if not entry.over]
    rows = read_queue(entry.job_name for entry in ledger)
    settled = []
    for entry in ledger:
        if entry.job_id:
            settled.append(entry)
            continue
        row = next((row for row in rows.values() if row.name == entry.job_name), None)
        if row is None:
            close_submissions(root, [entry], "never accepted by SLURM")
            continue
        adopted = replace(entry, job_id=row.job_id.partition("_")[0])
        folder = root / LEDGER / entry.token
        if all((folder / f"{task}_submitted.pkl").exists() for task in adopted.task_ids):
            write_submission(root, adopted)
            settled.append(adopted)
        else:
            call(["scancel", adopted.job_id])
            close_submissions(root, [adopted], "cancelled: the submission was not completed")
    return settled, rows


@contextmanager
def outside_a_job() -> Iterator[None]:
    """Hide the variables of the job that this process runs in, if it does; keep `SLURM_CONF`."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def submit(
    plan: Plan,
    waiting: Sequence[Stage],
    submitted: Mapping[str, str],
) -> Iterator[tuple[JobGroup, Submission]]:
    """Submit the stages that wait, a few sbatch calls in all, and the report after them.

    Yields each array once SLURM has accepted it. `submitted` has the job ids, by stage name, of
    stages that are in the queue already.

    Raises:
        SlurmError: SLURM refused; what was accepted before stays, and the next run goes on.
    """
    groups = job_groups(waiting, plan.config.resources, submitted)
    if faults := resource_faults(plan):
        raise SlurmError("\n".join(faults))
    root = plan.config.root.absolute()
    for character, what in (("%", "SLURM expands"), (":", "PYTHONPATH is parted by")):
        if character in str(root):
            raise SlurmError(f"{root}: {what} {character!r}; choose another output_dir")
    code = take_snapshot(root / "code")
    check_accepted(groups, root, code)
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(prepare, waiting))
    job_ids: dict[str, str] = {}
    for group in groups:
        submission = new_submission(group, plan.config.name)
        write_submission(plan.config.root, submission)
        folder = root / LEDGER / submission.token
        folder.mkdir(parents=True)
        calls: list[Callable[[], str]] = [
            StageJob(str(stage.run_dir.absolute())) for stage in group.stages
        ]
        if group.kind == REPORT:
            write_plan(plan, folder / "plan.json")
            calls = [ReportJob(str(folder / "plan.json"))]
        dependency = ",".join(dependency_words(group, job_ids))
        parameters = sbatch_parameters(group, submission.job_name, dependency, folder, code)
        job_ids[group.name] = _sbatch(calls, parameters, group, folder)
        submission = replace(submission, job_id=job_ids[group.name])
        write_submission(plan.config.root, submission)
        yield group, submission


def _sbatch(
    calls: list[Callable[[], str]], parameters: dict[str, Any], group: JobGroup, folder: Path
) -> str:
    """Hand one array to submitit; return its job id."""
    with outside_a_job():
        python = python_command(sys.executable)
        executor = submitit.SlurmExecutor(folder, group.resources.max_jobs - 1, python=python)
        executor.update_parameters(**parameters)
        try:
            jobs = executor.submit_array(calls)
        except (FailedSubmissionError, UncompletedJobError, OSError) as error:
            raise SlurmError(f"sbatch refused {group.name}: {one_line(error)}") from None
    return str(jobs[0].job_id).partition("_")[0]


def check_accepted(groups: Iterable[JobGroup], folder: Path, code: Path) -> None:
    """Ask SLURM whether it would take each kind of job, before any is submitted.

    Raises:
        SlurmError: one line for every kind that it refuses.
    """
    if shutil.which("srun") is None or shutil.which("sbatch") is None:
        raise SlurmError("sbatch: no such command here; is this a SLURM machine?")
    first = {group.kind: group for group in reversed(list(groups))}
    faults = []
    for kind, group in first.items():
        single = replace(group, stages=group.stages[:1], dependencies=())
        parameters = sbatch_parameters(single, "check", "", folder, code)
        text = sbatch_text(parameters, single, folder, sys.executable)
        with tempfile.TemporaryDirectory() as temporary:
            script = Path(temporary) / "check.sh"
            script.write_text(text, encoding="utf-8")
            try:
                with outside_a_job():
                    call(["sbatch", "--test-only", str(script)])
            except SlurmError as error:
                if "not available" not in str(error):  # its nodes may only be down or drained
                    faults.append(f"resources.{kind}: {error}")
    if faults:
        raise SlurmError("\n".join(faults))


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Cancel jobs by id, in as few calls as command lines allow.

    Raises:
        SlurmError: scancel failed.
    """
    for start in range(0, len(job_ids), IDS_A_CALL):
        call(["scancel", *job_ids[start : start + IDS_A_CALL]])
