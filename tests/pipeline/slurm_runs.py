"""Runs of the small project's plan over the fake SLURM, in which a test moves the jobs."""

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
