"""Rows of SLURM's queue and accounting: one squeue and one sacct call, however many jobs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.executors.slurm.environment import client_environment
from pipeline.executors.slurm.job_states import PHASES, Phase, phase_of

CALL_TIMEOUT_S = 60
MAX_ARGUMENT = 100_000  # Linux takes 131,072 bytes for one argument
SQUEUE = ("squeue", "--noheader", "--all")  # also jobs in partitions that a site hides from users


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
    def phase(self) -> Phase:
        """Return where the job is, by the table of SLURM's states."""
        return phase_of(self.state, self.reason)

    @property
    def is_queued(self) -> bool:
        """Return whether the job waits, and can still start."""
        return self.phase in ("waiting", "returning")

    @property
    def is_over(self) -> bool:
        """Return whether nothing is left to cancel; a state of no table is not over."""
        return PHASES.get(self.state) in ("completed", "failed")

    @property
    def is_active(self) -> bool:
        """Return whether the job is over only after something else happens."""
        return self.is_queued or self.phase == "running"


def call(
    command: list[str],
    environment: Mapping[str, str] | None = None,
    timeout_s: float = CALL_TIMEOUT_S,
) -> str:
    """Return what a SLURM command prints; by default no filter of the user's environment counts.

    Raises:
        SlurmError: it is not there, failed or did not answer.
    """
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",  # in the names that others gave their jobs
            timeout=timeout_s,
            check=False,
            env=client_environment(os.environ) if environment is None else environment,
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: no such command here; is this a SLURM machine?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {timeout_s} s") from None
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        said = [line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in lines]
        raise SlurmError(f"{command[0]}: {'; '.join(dict.fromkeys(said))}")
    return answer.stdout


def read_queue(job_ids: Iterable[str]) -> dict[str, JobRow]:
    """Return the jobs with these ids and all their tasks, also those that ended a while ago.

    Raises:
        SlurmError: squeue failed.
    """
    ours = {job_id.partition("_")[0] for job_id in job_ids}
    rows = _squeue("jobs", ours) if ours else []
    return {row.job_id: row for row in rows if row.job_id.partition("_")[0] in ours}


def find_by_name(names: Iterable[str]) -> dict[str, JobRow]:
    """Return one row for each of these names that the queue knows, by name.

    Raises:
        SlurmError: squeue failed.
    """
    ours = set(names)
    rows = _squeue("name", ours) if ours else []
    return {row.name: row for row in rows if row.name in ours}


def count_jobs(user: str = "") -> int:
    """Return how many jobs the controller remembers, array tasks one by one; or a user's.

    Raises:
        SlurmError: squeue failed.
    """
    command = [*SQUEUE, "--array", "--format=%i"]
    command.append(f"--user={user}" if user else "--states=all")
    return len(call(command).split())


def _squeue(option: str, values: set[str]) -> list[JobRow]:
    command = [*SQUEUE, "--array", "--states=all", "--format=%i|%T|%N|%M|%L|%r|%j"]
    listed = ",".join(sorted(values))
    if len(listed) < MAX_ARGUMENT:
        command.append(f"--{option}={listed}")
    try:
        return parse_rows(call(command))
    except SlurmError as error:
        if "Invalid job id" in str(error):  # so it says of a single one that it has forgotten
            return []
        raise


def read_accounting(job_ids: Iterable[str]) -> dict[str, JobRow]:
    """Return what the accounting database knows of jobs and all their tasks, by id.

    Raises:
        SlurmError: sacct failed; many clusters have no accounting.
    """
    jobs = sorted({job_id.partition("_")[0] for job_id in job_ids})
    if not jobs:
        return {}
    columns = "--format=JobID,State,NodeList,Elapsed"
    command = ["sacct", "--noheader", "--parsable2", "--allocations", columns]
    rows = parse_rows(call([*command, f"--jobs={','.join(jobs)}"]))
    return {row.job_id: row for row in rows}


def parse_rows(text: str) -> list[JobRow]:
    """Return the rows of sacct's `id|state|node|elapsed`; squeue adds `|left|reason|name`.

    The name comes last: its owner may have put anything into it.
    """
    rows = []
    for line in text.splitlines():
        parts = line.strip().split("|", 6)
        if len(parts) not in (4, 7) or "." in parts[0]:  # `12.batch` is a step of job 12
            continue
        job, state, node, elapsed, left, reason, name = (*parts, "", "", "")[:7]
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
