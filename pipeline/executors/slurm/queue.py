"""Rows of SLURM's queue and accounting: one squeue and one sacct call, however many jobs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

CALL_TIMEOUT_S = 60
MAX_ARGUMENT = 100_000  # Linux takes 131,072 bytes for one argument
QUEUED = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "PREEMPTED"}
RUNNING = {
    "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT",
    "RESIZING",
}  # fmt: skip
NEVER = "DependencyNeverSatisfied"


class SlurmError(ValueError):
    """A SLURM command is missing or refused; the text is what it said."""


@dataclass(frozen=True)
class JobRow:
    """One job or array task; times in seconds, None where SLURM does not say."""

    job_id: str
    name: str
    state: str
    node: str = ""
    elapsed_s: int | None = None
    left_s: int | None = None
    reason: str = ""

    @property
    def is_queued(self) -> bool:
        """Return whether the job waits, and can still start."""
        return self.state in QUEUED and self.reason != NEVER

    @property
    def is_active(self) -> bool:
        """Return whether the job is over only after something else happens."""
        return self.is_queued or self.state in RUNNING


def call(command: list[str]) -> str:
    """Return what a SLURM command prints.

    Raises:
        SlurmError: it is not there, failed or did not answer.
    """
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=CALL_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: no such command here; is this a SLURM machine?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {CALL_TIMEOUT_S} s") from None
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        raise SlurmError(f"{command[0]}: {'; '.join(lines)}")
    return answer.stdout


def read_queue(names: Iterable[str]) -> dict[str, JobRow]:
    """Return the jobs with these names by id, those that ended a short while ago among them.

    Raises:
        SlurmError: squeue failed.
    """
    ours = set(names)
    if not ours:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%j|%T|%N|%M|%L|%r"]
    listed = ",".join(sorted(ours))
    if len(listed) < MAX_ARGUMENT:
        command.append(f"--name={listed}")
    rows = parse_rows(call(command))
    return {row.job_id: row for row in rows if row.name in ours}


def read_accounting(job_ids: Iterable[str]) -> dict[str, JobRow]:
    """Return what the accounting database knows of jobs and all their tasks, by id.

    Raises:
        SlurmError: sacct failed; many clusters have no accounting.
    """
    jobs = sorted({job_id.partition("_")[0] for job_id in job_ids})
    if not jobs:
        return {}
    columns = "--format=JobID,JobName,State,NodeList,Elapsed"
    command = ["sacct", "--noheader", "--parsable2", "--allocations", columns]
    rows = parse_rows(call([*command, f"--jobs={','.join(jobs)}"]))
    return {row.job_id: row for row in rows}


def parse_rows(text: str) -> list[JobRow]:
    """Return the rows of sacct's `id|name|state|node|elapsed`; squeue adds `|left|reason`."""
    rows = []
    for line in text.splitlines():
        parts = line.strip().split("|", 6)
        if len(parts) not in (5, 7) or "." in parts[0]:  # `12.batch` is a step of job 12
            continue
        job, name, state, node, elapsed, left, reason = (*parts, "", "")[:7]
        word = state.split()[0] if state else ""  # `CANCELLED by 1000`
        node = "" if node == "None assigned" else node
        times = parse_time(elapsed), parse_time(left)
        rows += [JobRow(one, name, word, node, *times, reason) for one in expand_ids(job)]
    return rows


def expand_ids(text: str) -> list[str]:
    """Return the task ids of `12`, `12_3` or `12_[0-3,7%2]`."""
    match = re.fullmatch(r"(\d+)_\[([\d,\-:]+)(?:%\d+)?\]", text)
    if match is None:
        return [text]
    numbers: list[int] = []
    for part in match[2].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return [f"{match[1]}_{number}" for number in numbers]


def parse_time(text: str) -> int | None:
    """Return the seconds of `[days-][[hours:]minutes:]seconds`, None of anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
