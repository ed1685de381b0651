"""Where stages stand, from a fake SLURM and from run folders alone."""

from pathlib import Path

from pipeline.commands.main import Options, execute
from pipeline.executors.slurm.states import Standing, read_standings
from pipeline.plan.build import load_plan
from pipeline.worker import run as run_worker

CONFIG = Path("configs/tiny.yaml")
SLURM = Options(executor="slurm")


def plan_of(*overrides: str):
    return load_plan(CONFIG, ["seeds=[0]", *overrides])


def run(*overrides: str) -> int:
    return execute("run", CONFIG, ["seeds=[0]", *overrides], SLURM)


def standings_of(*overrides: str) -> dict[str, Standing]:
    return read_standings(plan_of(*overrides))[0]


def work(fake, *overrides: str) -> list[str]:
    """Let every waiting job whose inputs are done run to its end; return what ran."""
    ran = []
    for entry in plan_of(*overrides).stages:
        standing = standings_of(*overrides)[entry.name]
        if standing.status == "queued" and all(s.result.exists() for s in entry.inputs.values()):
            code = run_worker(entry.run_dir)
            state = "COMPLETED" if code == 0 else "FAILED"
            fake.set_state(standing.job_id, state=state, node="n1")
            ran.append(entry.name)
    return ran


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
