"""The ledger of submissions: one file an sbatch call, written before it and completed after it.

`<root>/slurm/<token>.json` names the stages and, once known, the job id. The token is part of the
job's name, so that a job whose id was never written down is found again.

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

    def task_id(self, index: int) -> str:
        """Return the job id of the task of one stage."""
        return f"{self.job_id}_{index}" if len(self.stages) > 1 else self.job_id

    @property
    def task_ids(self) -> list[str]:
        """Return the job ids of all tasks."""
        return [self.task_id(index) for index in range(max(1, len(self.stages)))]


def new_submission(group: JobGroup, pipeline: str) -> Submission:
    """Return a submission with a token of its own; nothing is written."""
    now = datetime.now(UTC)
    token = f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}"
    return Submission(
        token=token,
        job_name=f"{pipeline}-{group.name}-{token}",
        group=group.name,
        kind=group.kind,
        stages=tuple(stage.name for stage in group.stages),
        run_dirs=tuple(str(stage.run_dir.absolute()) for stage in group.stages),
        submitted=now.isoformat(timespec="seconds"),
        user=getpass.getuser(),
        host=os.uname().nodename,
    )


def write_submission(root: Path, submission: Submission) -> None:
    """Write one submission, whole or not at all."""
    (root / LEDGER).mkdir(parents=True, exist_ok=True)
    write_json(root / LEDGER / f"{submission.token}.json", asdict(submission))


def close_submissions(root: Path, submissions: Iterable[Submission], why: str) -> None:
    """Record that nothing of these submissions is or will be at work."""
    for submission in submissions:
        write_submission(root, replace(submission, over=why))


def read_ledger(root: Path) -> list[Submission]:
    """Return all submissions, oldest first.

    Raises:
        ValueError: a file of the ledger is damaged.
    """
    submissions = []
    for path in sorted((root / LEDGER).glob("*.json")):
        content = read_json(path)
        try:
            lists = {key: tuple(content[key]) for key in ("stages", "run_dirs")}
            submissions.append(Submission(**(content | lists)))
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: not a submission ({error}); move it away") from None
    return submissions


def latest_tasks(submissions: Iterable[Submission]) -> dict[str, tuple[Submission, int]]:
    """Return the last submission of each run folder, and the number of its task."""
    return {
        run_dir: (submission, index)
        for submission in submissions
        for index, run_dir in enumerate(submission.run_dirs)
    }
