"""The table of SLURM's states, against the full list of squeue's and sacct's manuals."""

import pytest

from pipeline.executors.slurm.job_states import PHASES, is_held, phase_of

OF_THE_MANUALS = {  # SLURM 22.05 to 25.05
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "CONFIGURING", "DEADLINE", "FAILED",
    "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PENDING", "POWER_UP_NODE", "PREEMPTED",
    "RECONFIG_FAIL", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "RESV_DEL_HOLD",
    "REVOKED", "RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED",
    "TIMEOUT",
}  # fmt: skip


def test_every_state_of_the_manuals_has_its_phase() -> None:
    assert PHASES.keys() == OF_THE_MANUALS
    by_phase = {phase: {state for state in PHASES if PHASES[state] == phase} for phase in
                ("waiting", "returning", "completed")}  # fmt: skip
    assert by_phase == {
        "waiting": {"PENDING", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"},
        "returning": {"REQUEUED", "REQUEUE_FED"},
        "completed": {"COMPLETED"},
    }


@pytest.mark.parametrize(
    ("state", "reason", "phase"),
    [
        ("PREEMPTED", "", "failed"),
        ("PENDING", "Dependency", "waiting"),
        ("PENDING", "DependencyNeverSatisfied", "failed"),
        ("RUNNING", "DependencyNeverSatisfied", "running"),
        ("A_STATE_OF_TOMORROW", "", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_phase_of_a_job(state: str, reason: str, phase: str) -> None:
    assert phase_of(state, reason) == phase


def test_what_somebody_has_to_release() -> None:
    assert is_held("PENDING", "JobHeldUser") and is_held("SPECIAL_EXIT", "None")
    assert is_held("PENDING", "launch failed requeued held") is True
    assert not is_held("PENDING", "Priority")
