"""Plans that outlive kills, crashes and drained nodes on a real SLURM, with undisturbed results."""

import hashlib
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.commands.slurm import cancel
from pipeline.commands.status import show_log, show_status
from pipeline.config.tracking import TrackingConfig
from pipeline.executors.slurm import states
from pipeline.executors.slurm.ledger import read_ledger
from pipeline.executors.slurm.queue import read_queue
from pipeline.executors.slurm.states import last_lines, read_standings
from tests.pipeline.tracking.stores import need, shown_in

pytestmark = pytest.mark.slurm


def chain(steps: int, start: str = "") -> str:
    """What an undisturbed stage of seed 0 writes."""
    digest = start
    for step in range(steps):
        digest = hashlib.sha256(f"{digest}0{step}".encode()).hexdigest()
    return digest


def result(plan, name: str) -> str:
    return next(s for s in plan.stages if s.name == name).result.read_text(encoding="utf-8")


def starts(plan, name: str) -> list[int]:
    folder = next(s for s in plan.stages if s.name == name).run_dir
    return [int(line) for line in (folder / "starts.txt").read_text(encoding="utf-8").split()]


def all_done(project, plan, seconds: float = 40) -> None:
    standings = project.wait_done(plan, seconds)
    assert {standing.status for standing in standings.values()} == {"done"}, standings


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("how", ["signal", "term", "priority"])
def test_preempted_and_continued(project, how: str) -> None:
    project.behave("a", steps=30, step_s=0.2)
    plan = project.plan(short=True)
    project.run(plan)
    standing = project.wait_steps(plan, "pretrain/a", 3)
    if how == "priority":  # SLURM itself takes the nodes for a job of a higher partition
        slurm(
            "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null",
            "--wrap=sleep 2",
        )  # fmt: skip
    else:
        slurm("scancel", f"--signal={'USR2' if how == 'signal' else 'TERM'}", standing.job_id)
    all_done(project, plan)
    assert result(plan, "pretrain/a") == chain(30)
    first, *later = starts(plan, "pretrain/a")
    assert first == 0 and later and 3 <= later[0] < 30


def test_a_stage_that_is_put_back_goes_on_in_the_same_tracked_run(project) -> None:
    need("wandb")
    project.behave("a", steps=20, step_s=0.3)
    tracking = TrackingConfig.model_validate({"wandb": {"mode": "offline"}})
    plan = project.plan(short=True)
    plan = replace(plan, config=plan.config.model_copy(update={"tracking": tracking}))
    project.run(plan)
    standing = project.wait_steps(plan, "pretrain/a", 5)
    slurm("scancel", "--signal=USR2", standing.job_id)
    all_done(project, plan, 120)
    assert len(starts(plan, "pretrain/a")) == 2
    (shown,) = [each for each in shown_in("wandb", plan.config.root) if each.name == "pretrain/a"]
    assert shown.points["loss"] == [(step, 1 / step) for step in range(1, 21)]
    assert (shown.status, shown.group) == ("finished", "a")


def test_a_dead_node_does_not_lose_the_stage(project, cluster) -> None:
    project.behave("a", steps=25, step_s=0.2)
    plan = project.plan(short=True)
    project.run(plan)
    node = project.wait_steps(plan, "pretrain/a", 3).node
    cluster.kill_node(node)
    slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")
    all_done(project, plan)
    assert result(plan, "pretrain/a") == chain(25)
    assert len(starts(plan, "pretrain/a")) == 2
    assert project.standings(plan)["pretrain/a"].node != node


def test_a_failure_stops_what_needs_it_and_is_explained(project) -> None:
    project.behave("a", fail_at=1)
    plan = project.plan(("a", "b"))
    project.run(plan)
    standings = project.wait_done(plan)
    assert {v.status for v in standings.values() if v.backbone == "b"} == {"done"}
    assert standings["pretrain/a"].status == "failed"
    assert standings["pretrain/a"].reason == "the loss became NaN at step 1"
    tuned = standings["finetune/a--voc--seed1"]
    assert tuned.status == "missing" and tuned.reason is not None
    assert tuned.reason.startswith("needs pretrain/a, which failed: the loss became NaN")
    assert not Path(tuned.log).with_name("x").exists() and tuned.log == standings["pretrain/a"].log
    assert "NaN at step 1" in last_lines(Path(standings["pretrain/a"].log))[-1]
    project.wait(plan, lambda _: (plan.config.root / "report" / "index.html").exists(), 30)
    rows = read_queue([entry.job_id for entry in read_ledger(plan.config.root)])
    waiting = {r.state for r in rows.values() if r.name.startswith(("tiny-convert", "tiny-fine"))}
    assert waiting <= {"CANCELLED", "COMPLETED"}
    with project.output.capture() as said:
        assert show_status(plan, project.output) == 1
    text = re.sub(r"\s+", " ", said.get())
    assert "NaN at step 1" in text and "Traceback" not in text.split("pretrain/a: ")[0]
    show_log(plan, project.output, "finetune/a--voc--seed1")
    project.behave("a")
    assert project.run(plan) == 0
    all_done(project, plan)


def test_cancel_empties_the_queue_and_run_goes_on(project) -> None:
    project.behave("a", steps=30, step_s=0.2)
    plan = project.plan()
    project.run(plan)
    project.wait_steps(plan, "pretrain/a", 3)
    assert cancel(plan, project.output) == 0
    assert slurm("squeue", "--noheader") == ""
    assert {standing.status for standing in project.standings(plan).values()} == {"missing"}
    project.run(plan)
    all_done(project, plan)
    assert result(plan, "pretrain/a") == chain(30)
    assert starts(plan, "pretrain/a")[1] >= 3


def test_the_controller_restarts_while_a_stage_saves(project, cluster) -> None:
    project.behave("a", steps=60, step_s=0.2)
    plan = project.plan(short=True)
    project.run(plan)
    project.wait_steps(plan, "pretrain/a", 3)
    cluster.stop_controller()
    standings, notes = read_standings(plan)
    assert standings["pretrain/a"].status == "running" and notes[0].startswith("squeue")
    cluster.signal_task("USR2")
    time.sleep(1)  # it tries to go back into a queue that is not there
    cluster.start_controller()
    all_done(project, plan)
    assert result(plan, "pretrain/a") == chain(60)
    assert len(starts(plan, "pretrain/a")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("asked_to_end", [True, False])
def test_the_controller_is_away_while_a_stage_starts(project, cluster, asked_to_end: bool) -> None:
    plan = project.plan(short=True, setup=["touch in-setup", "sleep 3"])
    project.run(plan)
    deadline = time.monotonic() + 30
    while not Path("in-setup").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cluster.stop_controller()
    if asked_to_end:
        cluster.inside("kill -TERM $(pgrep -f '[s]lurm_script')")
    time.sleep(5)  # by now srun would ask for a step
    cluster.start_controller()
    all_done(project, plan, 300)  # it makes no step before the node has come back to it
    assert result(plan, "pretrain/a") == chain(2)


def test_a_folder_that_is_briefly_away_is_waited_for(project) -> None:
    plan = project.plan()
    slurm("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=later")
    slurm("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=later")
    project.run(plan)
    Path("runs").rename("away")
    for node in ("n1", "n2"):
        slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
    deadline = time.monotonic() + 30
    while "RUNNING" not in slurm("squeue", "--noheader", "--format=%T"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(2)
    Path("away").rename("runs")
    all_done(project, plan)


def test_killed_by_hand_without_accounting_is_known(project, monkeypatch) -> None:
    project.behave("a", steps=100, step_s=0.2)
    plan = project.plan()
    project.run(plan)
    standing = project.wait_steps(plan, "pretrain/a", 2)
    slurm("scancel", standing.job_id)
    standings = project.wait_done(plan)
    assert standings["pretrain/a"].reason is not None
    assert "ended as CANCELLED" in standings["pretrain/a"].reason
    assert standings["finetune/a--voc--seed0"].status == "missing"

    def forgetful(names) -> dict:  # squeue knows an ended job only for a while
        return {key: row for key, row in read_queue(names).items() if row.is_active}

    monkeypatch.setattr(states, "read_queue", forgetful)
    standings, notes = states.read_standings(plan)
    assert len(notes) == 1 and notes[0].startswith("sacct: ")
    assert "is gone and left no result" in str(standings["pretrain/a"].reason)
    assert standings["pretrain/a"].node in ("n1", "n2")


@pytest.mark.slow
def test_time_limits_continue_in_as_many_jobs_as_configured(project) -> None:
    project.behave("a", steps=36, step_s=1.0)
    project.behave("b", steps=2000, step_s=1.0)
    plan = project.plan(("a", "b"), short=True, timeout_min=1, save_s=30, max_jobs=3)
    project.run(plan)
    standings = project.wait_done(plan, 300)
    assert {v.status for v in standings.values() if v.backbone == "a"} == {"done"}
    assert result(plan, "pretrain/a") == chain(36)
    assert 2 <= len(starts(plan, "pretrain/a")) <= 3
    assert standings["pretrain/b"].status == "failed"
    assert "max_jobs" in str(standings["pretrain/b"].reason)
    assert len(starts(plan, "pretrain/b")) == 3
