"""The states of SLURM's jobs, by one table: does a job wait, run, come back, or is it over."""

from __future__ import annotations

from typing import Literal

Phase = Literal["waiting", "returning", "running", "completed", "failed", "unknown"]

# All states of squeue's and sacct's manuals. "returning" goes back to the queue by itself.
PHASES: dict[str, Phase] = {
    "PENDING": "waiting",
    "REQUEUE_HOLD": "waiting",
    "RESV_DEL_HOLD": "waiting",
    "SPECIAL_EXIT": "waiting",
    "REQUEUED": "returning",
    "REQUEUE_FED": "returning",
    "COMPLETING": "running",
    "CONFIGURING": "running",
    "POWER_UP_NODE": "running",
    "RESIZING": "running",
    "RUNNING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "STOPPED": "running",
    "SUSPENDED": "running",
    "COMPLETED": "completed",
    "BOOT_FAIL": "failed",
    "CANCELLED": "failed",
    "DEADLINE": "failed",
    "FAILED": "failed",
    "LAUNCH_FAILED": "failed",
    "NODE_FAIL": "failed",
    "OUT_OF_MEMORY": "failed",
    "PREEMPTED": "failed",
    "RECONFIG_FAIL": "failed",
    "REVOKED": "failed",
    "TIMEOUT": "failed",
}
ADVICE = {
    "PREEMPTED": "another job took its node; run again goes on from what it saved",
    "NODE_FAIL": "its node died; run again goes on from what it saved",
    "BOOT_FAIL": "its node did not start; run again",
    "DEADLINE": "its deadline passed",
    "OUT_OF_MEMORY": "it took more than its memory; raise resources' mem_gb",
    "TIMEOUT": "its time limit came before it had saved; raise timeout_min or save_s",
    "REVOKED": "another cluster of the federation took it",
}
HELD = ("REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
HELD_FOR = "held"  # JobHeldUser, JobHeldAdmin, launch failed requeued held
NEVER = "DependencyNeverSatisfied"


def phase_of(state: str, reason: str = "") -> Phase:
    """Return where a job is; one whose dependency cannot come true any more has failed.

    >>> phase_of("PREEMPTED"), phase_of("REQUEUED"), phase_of("A_STATE_OF_TOMORROW")
    ('failed', 'returning', 'unknown')
    """
    phase = PHASES.get(state, "unknown")
    return "failed" if phase == "waiting" and reason == NEVER else phase


def is_held(state: str, reason: str) -> bool:
    """Return whether a waiting job starts only after somebody has released it."""
    return state in HELD or HELD_FOR in reason.lower()
