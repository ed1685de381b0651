"""The standing of stages, from a fake SLURM and from run folders alone."""

from pipeline.executors.slurm.states import read_standings
from tests.pipeline.slurm_runs import plan_of, run, work


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
