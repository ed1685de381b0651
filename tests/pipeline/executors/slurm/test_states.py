"""The standing of stages, from a fake SLURM and from run folders alone."""

import os
import time

import pytest

from pipeline.config.schema import Resources
from pipeline.executors.slurm.arrays import JobGroup
from pipeline.executors.slurm.ledger import new_submission, write_submission
from pipeline.executors.slurm.states import judge, read_standings
from pipeline.stages.run_folder import HEARTBEAT
from tests.pipeline.slurm_runs import plan_of, run, standings_of, work

pytestmark = pytest.mark.usefixtures("in_process")


def test_one_queue_call_and_one_accounting_call_whatever_the_size(fake) -> None:
    run("seeds=[0,1,2,3,4,5,6,7]")
    fake.calls  # noqa: B018
    read_standings(plan_of("seeds=[0,1,2,3,4,5,6,7]"))
    assert fake.calls == ["squeue"]
    for job in fake.jobs:
        fake.set_state(job, state="NODE_FAIL", purged=True)
    standings, notes = read_standings(plan_of("seeds=[0,1,2,3,4,5,6,7]"))
    assert sorted(fake.calls) == ["sacct", "squeue"] and notes == []
    assert "ended as NODE_FAIL" in str(standings["pretrain/a"].reason)


def test_without_accounting_the_run_folder_decides(fake) -> None:
    run()
    fake.fail("sacct", "sacct: error: Slurm accounting storage is disabled")
    work(fake)
    for job in fake.jobs:
        fake.set_state(job, purged=True)
    standings, notes = read_standings(plan_of())
    assert {standing.status for standing in standings.values()} == {"done"} and notes == []
    (plan_of().stages[0].run_dir / "manifest.json").unlink()
    standings, notes = read_standings(plan_of())
    assert len(notes) == 1 and "accounting storage is disabled" in notes[0]
    assert "gone" in str(standings[plan_of().stages[0].name].reason)


def test_a_preempted_job_and_an_unknown_state_are_no_waiting(fake) -> None:
    run()
    job = standings_of()["pretrain/a"].job_id
    fake.set_state(job, state="PREEMPTED", node="n1")
    standings = standings_of()
    assert [standings[f"{kind}/a"].status for kind in ("pretrain", "convert")] == [
        "failed",
        "missing",
    ]
    assert "ended as PREEMPTED (another job took its node; run again" in str(
        standings["pretrain/a"].reason
    )
    fake.set_state(job, state="A_STATE_OF_TOMORROW")
    assert "A_STATE_OF_TOMORROW, which is not known here" in str(
        standings_of()["pretrain/a"].reason
    )


def test_a_report_that_will_not_come_is_said(fake) -> None:
    run()
    (report,) = (job for job, row in fake.jobs.items() if "report" in row["name"])
    assert read_standings(plan_of())[1] == []
    fake.set_state(report, state="CANCELLED")
    said = [f"the report's job {report} ended as CANCELLED; run makes it again"]
    assert read_standings(plan_of())[1] == said
    fake.set_state(report, purged=True)
    assert "the queue has no report" in read_standings(plan_of())[1][0]
    assert run() == 0 and read_standings(plan_of())[1] == []


def test_a_submission_that_never_got_a_job_is_not_looked_for(fake) -> None:
    plan = plan_of()
    group = JobGroup("pretrain", "pretrain", plan.stages[:1], Resources())
    write_submission(plan.config.root, new_submission(group, plan.config.name, 1))
    standings, _ = read_standings(plan)
    assert standings[plan.stages[0].name].reason == "its submission was not completed"
    assert "sacct" not in fake.calls


def test_what_has_to_be_released_is_said(fake) -> None:
    run()
    job = standings_of()["pretrain/a"].job_id
    fake.set_state(job, state="REQUEUE_HOLD", reason="None")
    standing = standings_of()["pretrain/a"]
    assert standing.status == "queued" and f"scontrol release {job}" in str(standing.reason)


@pytest.mark.parametrize(("age_s", "elapsed_s", "silent"), [
    (30, 5000, None), (1500, 5000, "25 minutes"), (9000, 90, None), (None, 3000, "50 minutes"),
])  # fmt: skip
def test_no_sign_of_life(fake, age_s: int | None, elapsed_s: int, silent: str | None) -> None:
    from pipeline.executors.slurm.ledger import latest_tasks, read_ledger
    from pipeline.executors.slurm.queue import JobRow
    from pipeline.stages.run_folder import State

    run()
    plan = plan_of()
    stage = next(stage for stage in plan.stages if stage.name == "pretrain/a")
    if age_s is not None:
        (stage.run_dir / HEARTBEAT).touch()
        then = time.time() - age_s
        os.utime(stage.run_dir / HEARTBEAT, (then, then))
    task = latest_tasks(read_ledger(plan.config.root))[str(stage.run_dir.absolute())]
    job = task[0].task_id(task[1])
    rows = {job: JobRow(job, "x", "RUNNING", "n1", elapsed_s)}
    standing = judge(stage, State("running"), task, rows, {})
    assert standing.status == "running"
    if silent is None:
        assert standing.reason is None
    else:
        assert f"no sign of life for {silent}; if n1 died" in str(standing.reason)
        assert f"scontrol requeue {job}" in str(standing.reason)


def test_slurms_own_output_is_the_log_where_no_worker_started(fake) -> None:
    run()
    standing = standings_of()["pretrain/a"]
    fake.set_state(standing.job_id, state="FAILED", node="n1")
    (folder,) = {path.parent for path in plan_of().config.root.glob(
        f"slurm/*/{standing.job_id}_submitted.pkl")}  # fmt: skip
    log = folder / f"batch-{standing.job_id}.log"
    log.write_text("module: command not found\n", encoding="utf-8")
    failed = standings_of()["pretrain/a"]
    assert failed.log == str(log) and f"see {log}" in str(failed.reason)
