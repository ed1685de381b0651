"""Submission: what the site allows, then token, sbatch and job id, one array after another."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from submitit.core.utils import DelayedSubmission

from pipeline.config.schema import REPORT
from pipeline.executors.slurm.arrays import (
    JobGroup,
    job_groups,
    missing_images,
    resource_faults,
    stage_resources,
)
from pipeline.executors.slurm.environment import sbatch_environment
from pipeline.executors.slurm.ledger import (
    LEDGER,
    Submission,
    close_submissions,
    new_submission,
    next_number,
    read_ledger,
    write_submission,
)
from pipeline.executors.slurm.limits import check_accepted, fitting, read_limits
from pipeline.executors.slurm.plan_file import PLAN, write_plan
from pipeline.executors.slurm.queue import (
    JobRow,
    SlurmError,
    call,
    find_by_name,
    read_queue,
)
from pipeline.executors.slurm.sbatch import (
    dependency_words,
    options_of,
    sbatch_parameters,
    sbatch_text,
)
from pipeline.executors.slurm.snapshot import take_snapshot
from pipeline.executors.slurm.stage_job import ReportJob, StageJob
from pipeline.plan.plan import Plan
from pipeline.stages.files import write_text
from pipeline.stages.run_folder import prepare
from pipeline.stages.stage import Stage

IDS_A_CALL = 2000
WRITERS = 16
SBATCH_TIMEOUT_S = 300  # it tries again for two minutes where the controller is busy
SUBMITTED = "{}_submitted.pkl"  # what submitit loads in the job


def settle(root: Path) -> tuple[list[Submission], dict[str, JobRow]]:
    """Adopt or cancel jobs that a crash left without bookkeeping; return ledger and queue.

    A submission without a job id whose job is in the queue is adopted if the files for all its
    tasks are in place, else cancelled. One that is not in the queue was never accepted.

    Raises:
        SlurmError: the queue cannot be asked.
    """
    ledger = [entry for entry in read_ledger(root) if not entry.over]
    settled = [entry for entry in ledger if entry.job_id]
    named = find_by_name(entry.job_name for entry in ledger if not entry.job_id)
    for entry in ledger:
        if entry.job_id:
            continue
        row = named.get(entry.job_name)
        if row is None:
            close_submissions(root, [entry], "never accepted by SLURM")
            continue
        adopted = replace(entry, job_id=row.job_id.partition("_")[0])
        folder = root / LEDGER / entry.token
        if all((folder / SUBMITTED.format(task)).exists() for task in adopted.task_ids):
            write_submission(root, adopted)
            settled.append(adopted)
        else:
            call(["scancel", adopted.job_id])
            close_submissions(root, [adopted], "cancelled: the submission was not completed")
    settled.sort(key=lambda entry: entry.number)
    return settled, read_queue(entry.job_id for entry in settled)


def accepted_groups(
    plan: Plan, waiting: Sequence[Stage], submitted: Mapping[str, str]
) -> tuple[list[JobGroup], str]:
    """Return the arrays that the site will take now, and what it leaves for a later run.

    Nothing is submitted. `submitted` has the job ids, by stage name, of stages that are in the
    queue already.

    Raises:
        SlurmError: what can never be accepted, one line for each kind of stage.
    """
    if faults := resource_faults(plan):
        raise SlurmError("\n".join(faults))
    root = plan.config.root.absolute()
    for character, what in (("%", "SLURM expands"), (":", "PYTHONPATH is parted by")):
        if character in str(root):
            raise SlurmError(f"{root}: {what} {character!r}; choose another output_dir")
    resources = [stage_resources(plan.config.resources, stage) for stage in waiting]
    limits = read_limits(resources)
    now = fitting(waiting, limits)
    everything = job_groups(waiting, plan.config.resources, submitted, limits.max_array)
    if faults := missing_images(everything):
        raise SlurmError("\n".join(faults))
    check_accepted(everything, root, root / "code", limits.room)
    if len(now) == len(waiting):
        return everything, ""
    left = (
        f"{len(waiting) - len(now)} stages are left: {limits.room_is} leaves room for "
        f"{limits.room} jobs; run again when some are over"
    )
    return job_groups(now, plan.config.resources, submitted, limits.max_array), left


def submit(plan: Plan, groups: Sequence[JobGroup]) -> Iterator[tuple[JobGroup, Submission]]:
    """Submit arrays, one sbatch call each; yield each once SLURM has accepted it.

    Raises:
        SlurmError: SLURM refused one; what this call had submitted before is taken back.
    """
    root = plan.config.root.absolute()
    code = take_snapshot(root / "code")
    with ThreadPoolExecutor(WRITERS) as pool:
        prepared = partial(prepare, trackers=plan.config.tracking.trackers(plan.config.name))
        list(pool.map(prepared, [stage for group in groups for stage in group.stages]))
    number = next_number(read_ledger(root))
    accepted: list[Submission] = []
    job_ids: dict[str, str] = {}
    for count, group in enumerate(groups):
        submission = new_submission(group, plan.config.name, number + count)
        write_submission(root, submission)
        folder = root / LEDGER / submission.token
        folder.mkdir(parents=True)
        dependency = ",".join(dependency_words(group, job_ids))
        parameters = sbatch_parameters(group, submission.job_name, dependency, folder, code)
        text = sbatch_text(parameters, group, folder, sys.executable)
        calls: list[Callable[[], str]] = [
            StageJob(str(stage.run_dir.absolute())) for stage in group.stages
        ]
        if group.kind == REPORT:
            write_plan(plan, folder / PLAN)
            calls = [ReportJob(str(folder / PLAN))]
        try:
            job_id = _sbatch(text, calls, group, submission, folder)
        except SlurmError as error:
            why = f"sbatch refused {group.name}: {error}"
            _take_back(root, [*accepted, submission], why)
            raise SlurmError(f"{why}; what this run submitted before it is taken back") from None
        job_ids[group.name] = job_id
        accepted.append(replace(submission, job_id=job_id))
        write_submission(root, accepted[-1])
        yield group, accepted[-1]


def _sbatch(
    text: str,
    calls: Sequence[Callable[[], str]],
    group: JobGroup,
    submission: Submission,
    folder: Path,
) -> str:
    """Hand a script to sbatch and put submitit's pickles where its tasks look; return the id."""
    script = folder / "submission.sh"
    write_text(script, text)
    resources = group.resources
    pickles = []
    for index, function in enumerate(calls):
        delayed = DelayedSubmission(function)
        delayed.set_timeout(resources.timeout_min, resources.max_jobs - 1)
        pickles.append(folder / f"{index}.pkl")
        delayed.dump(pickles[-1])
    environment = sbatch_environment(os.environ, options_of(text))
    answer = call(["sbatch", str(script)], environment, SBATCH_TIMEOUT_S)
    job_id = re.search(r"job (\d+)", answer)
    if job_id is None:
        raise SlurmError(f"sbatch: answered {answer.strip()!r}, which names no job")
    named = replace(submission, job_id=job_id[1])
    for path, task_id in zip(pickles, named.task_ids, strict=True):
        path.rename(folder / SUBMITTED.format(task_id))
    script.rename(folder / f"{job_id[1]}_submission.sh")
    return job_id[1]


def _take_back(root: Path, submissions: Sequence[Submission], why: str) -> None:
    """Cancel what was submitted, by name where sbatch gave no id but may have accepted it.

    Raises:
        SlurmError: it cannot be cancelled now.
    """
    try:
        cancel_jobs([entry.job_id for entry in submissions if entry.job_id])
        left = find_by_name(entry.job_name for entry in submissions if not entry.job_id)
        cancel_jobs([row.job_id.partition("_")[0] for row in left.values()])
    except SlurmError as error:
        raise SlurmError(
            f"{why}; what this run submitted before it could not be taken back ({error}): cancel "
            "when SLURM answers again, or run to go on"
        ) from None
    close_submissions(root, submissions, f"taken back: {why}")


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Cancel jobs by id, in as few calls as command lines allow.

    Raises:
        SlurmError: scancel failed.
    """
    for start in range(0, len(job_ids), IDS_A_CALL):
        call(["scancel", *job_ids[start : start + IDS_A_CALL]])
