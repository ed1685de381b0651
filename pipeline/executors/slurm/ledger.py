"""The ledger of submissions: one file an sbatch call, written before it and completed after it.

`<root>/slurm/<token>.json` names the stages and, once known, the job id. The token is part of the
job's name, so that a job whose id was never written down is found again. Submissions are ordered by
their number, given under the pipeline's lock: clocks of different hosts are not compared.

Tested in tests/pipeline/executors/slurm/test_submit.py.
"""

from __future__ import annotations

import getpass
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.executors.slurm.arrays import JobGroup
from pipeline.stages.files import read_json, write_json

LEDGER = "slurm"  # the folder of a pipeline's submissions


@dataclass(frozen=True)
class Submission:
    """One sbatch call; `job_id` is empty until it is known, `over` says why nothing of it runs."""

    token: str
    job_name: str
    group: str
    kind: str
    stages: tuple[str, ...]
    run_dirs: tuple[str, ...]
    submitted: str
    user: str
    host: str
    job_id: str = ""
    over: str = ""
    number: int = 0
    task_numbers: tuple[int, ...] = ()

    def task_id(self, index: int) -> str:
        """Return the job id of the task of one stage."""
        if self.task_numbers:
            return f"{self.job_id}_{self.task_numbers[index]}"
        return f"{self.job_id}_{index}" if len(self.stages) > 1 else self.job_id

    @property
    def task_ids(self) -> list[str]:
        """Return the job ids of all tasks."""
        return [self.task_id(index) for index in range(max(1, len(self.stages)))]


def new_submission(group: JobGroup, pipeline: str, number: int) -> Submission:
    """Return a submission with a token of its own; nothing is written."""
    token = f"{number:06d}-{secrets.token_hex(3)}"
    return Submission(
        token=token,
        job_name=f"{pipeline}-{group.name}-{token}",
        group=group.name,
        kind=group.kind,
        stages=tuple(stage.name for stage in group.stages),
        run_dirs=tuple(str(stage.run_dir.absolute()) for stage in group.stages),
        submitted=datetime.now(UTC).isoformat(timespec="seconds"),
        user=getpass.getuser(),
        host=os.uname().nodename,
        number=number,
        task_numbers=group.task_numbers,
    )


def next_number(submissions: Iterable[Submission]) -> int:
    """Return the number of the next submission; the caller holds the pipeline's lock."""
    return 1 + max((submission.number for submission in submissions), default=0)


def write_submission(root: Path, submission: Submission) -> None:
    """Write one submission, whole or not at all."""
    (root / LEDGER).mkdir(parents=True, exist_ok=True)
    write_json(root / LEDGER / f"{submission.token}.json", asdict(submission))


def close_submissions(root: Path, submissions: Iterable[Submission], why: str) -> None:
    """Record that nothing of these submissions is or will be at work."""
    for submission in submissions:
        write_submission(root, replace(submission, over=why))


def read_ledger(root: Path) -> list[Submission]:
    """Return all submissions, oldest first; those from before numbers come in the order of names.

    Raises:
        ValueError: a file of the ledger is damaged.
    """
    submissions = []
    for path in sorted((root / LEDGER).glob("*.json")):
        content = read_json(path)
        try:
            lists = {key: tuple(content[key]) for key in ("stages", "run_dirs")}
            lists["task_numbers"] = tuple(content.get("task_numbers", ()))
            submissions.append(Submission(**(content | lists)))
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: not a submission ({error}); move it away") from None
    return sorted(submissions, key=lambda submission: submission.number)


def latest_tasks(submissions: Iterable[Submission]) -> dict[str, tuple[Submission, int]]:
    """Return the last submission of each run folder, and the number of its task."""
    return {
        run_dir: (submission, index)
        for submission in submissions
        for index, run_dir in enumerate(submission.run_dirs)
    }
