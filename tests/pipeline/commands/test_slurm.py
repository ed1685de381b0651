"""The commands over a fake SLURM: submission, ledger, states, status; nothing runs by itself."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from benchmarks.slurm_commands import COMMANDS, measured
from pipeline.commands.main import Options, execute
from pipeline.commands.slurm import cancel
from pipeline.executors.slurm.states import read_standings
from pipeline.stages.run_folder import FAILURE
from tests.pipeline.slurm_runs import CONFIG, SLURM, plan_of, run, standings_of, work

pytestmark = pytest.mark.usefixtures("in_process")


def test_where_nothing_was_submitted_nothing_is_cancelled(fake) -> None:
    console = Console(width=200, record=True, quiet=True)
    assert cancel(plan_of(), console) == 0
    assert "scancel" not in fake.calls


def test_pending_failed_retried_done(fake, capsys: pytest.CaptureFixture[str]) -> None:
    Path("behaviour-a").write_text("fail", encoding="utf-8")
    assert run() == 0
    assert fake.calls.count("sbatch") == 6  # two arrays, three of fine-tuning, the report
    assert {standing.status for standing in standings_of().values()} == {"queued"}
    assert run() == 0 and "sbatch" not in fake.calls
    work(fake)
    standings = standings_of()
    assert standings["pretrain/a"].status == "failed"
    assert standings["pretrain/a"].reason == "the loss became NaN at step 3"
    assert standings["finetune/a--voc--seed0"].status == "missing"
    assert standings["finetune/b--voc--seed0"].status == standings["convert/b"].status == "done"
    assert execute("status", CONFIG, ["seeds=[0]"]) == 1
    assert "the loss became NaN at step 3" in capsys.readouterr().out
    Path("behaviour-a").unlink()
    fake.calls  # noqa: B018
    assert run() == 0
    assert fake.calls.count("sbatch") == 4
    assert work(fake) == [
        "pretrain/a", "convert/a", "finetune/a--coco--seed0", "finetune/a--voc--seed0",
    ]  # fmt: skip
    assert {standing.status for standing in standings_of().values()} == {"done"}
    assert run() == 0 and "sbatch" not in fake.calls
    assert Path("runs/tiny/report/results.json").exists()


def test_plan_and_run_say_that_no_gpu_is_asked_for(
    fake, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("plan", "run", "run"):
        assert execute(command, CONFIG, ["seeds=[0]"], SLURM) == 0
        told = capsys.readouterr().out.count("pretrain, finetune: no GPU is asked for")
        assert told == (1 if fake.calls.count("sbatch") or command == "plan" else 0)
    asked = ["seeds=[0]", "resources.default.gpus=1"]
    assert execute("plan", CONFIG, asked, SLURM) == 0
    assert "no GPU" not in capsys.readouterr().out


def test_stages_in_a_container_are_shown_and_its_image_has_to_be_there(
    fake, capsys: pytest.CaptureFixture[str]
) -> None:
    container = "resources.default.container={image: images/x.sif}"
    path = Path.cwd() / "images" / "x.sif"
    without = {stage.name: stage.signature for stage in plan_of().stages}
    assert {stage.name: stage.signature for stage in plan_of(container).stages} == without
    missing = (
        f"run_pipeline: resources (pretrain, convert, finetune): container.image: {path}: no file "
        "or folder that can be read; docs/cluster.md says how to build it\n"
    )
    for command in ("plan", "run"):
        assert execute(command, CONFIG, ["seeds=[0]", container], SLURM) == 2
        assert capsys.readouterr().err == missing and "sbatch" not in fake.calls
    path.parent.mkdir()
    path.touch()
    assert execute("plan", CONFIG, ["seeds=[0]", container], SLURM) == 0
    shown = f'export STAGE_PYTHON=\'["apptainer", "exec", "--nv", "{path}", "python"]\''
    text = capsys.readouterr().out
    assert text.count(shown) == text.count("#!/bin/bash") - 1  # the report is no stage
    named = "resources.default.container={image: 'docker://lab/x:1'}"
    assert execute("run", CONFIG, ["seeds=[0]", named], SLURM) == 0


def test_without_a_queue_nothing_is_submitted(fake, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    fake.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    standings, notes = read_standings(plan_of())
    assert {standing.status for standing in standings.values()} == {"queued"} and len(notes) == 1
    fake.calls  # noqa: B018
    assert run() == 2 and "sbatch" not in fake.calls
    assert "Unable to contact slurm controller" in capsys.readouterr().err


def test_cancel_leaves_nothing_and_run_goes_on(fake, capsys) -> None:
    run()
    assert execute("cancel", CONFIG, ["seeds=[0]"]) == 0
    assert execute("status", CONFIG, ["seeds=[0]"]) == 0
    assert "holds no run of this plan" not in capsys.readouterr().out
    assert {job["state"] for job in fake.jobs.values()} == {"CANCELLED"}
    standings = standings_of()
    assert {standing.status for standing in standings.values()} == {"missing"}
    assert standings["pretrain/a"].reason == "cancelled; run goes on from here"
    assert run() == 0
    assert {standing.status for standing in standings_of().values()} == {"queued"}


def test_tasks_that_can_never_start_are_replaced(fake) -> None:
    run()
    plan = plan_of()
    standing = standings_of()["pretrain/a"]
    fake.set_state(standing.job_id, state="FAILED")
    (plan.stages[0].root / "pretrain").mkdir(exist_ok=True)
    pretrain = next(entry for entry in plan.stages if entry.name == "pretrain/a")
    (pretrain.run_dir / FAILURE).write_text('{"reason": "broken"}', encoding="utf-8")
    stale = standings_of()["convert/a"].job_id
    fake.set_state(stale, reason="DependencyNeverSatisfied")
    assert run() == 0
    assert fake.jobs[stale]["state"] == "CANCELLED"
    assert (
        standings_of()["convert/a"].status == "queued"
        and standings_of()["convert/a"].job_id != stale
    )


def test_a_local_run_leaves_the_queue_alone(fake, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert execute("run", CONFIG, ["seeds=[0]"]) == 2
    assert "ask for --executor local" in capsys.readouterr().err
    fake.fail("sacct", "sacct: error: Slurm accounting storage is disabled")
    fake.set_state(standings_of()["pretrain/a"].job_id, purged=True)
    assert execute("run", CONFIG, ["seeds=[0]"]) == 2  # a note is no reason to start beside it
    assert execute("run", CONFIG, ["seeds=[0]"], Options(executor="local")) == 0
    assert {standing.status for standing in standings_of().values()} == {"done"}


def test_a_lost_report_is_submitted_again(fake, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    (report,) = (job for job, row in fake.jobs.items() if "report" in row["name"])
    fake.set_state(report, state="CANCELLED")
    fake.calls  # noqa: B018
    assert run() == 0
    assert fake.calls.count("sbatch") == 1
    assert "report, after all others" in capsys.readouterr().out
    assert run() == 0 and "sbatch" not in fake.calls


def test_a_report_that_waits_is_one_of_the_plan_as_it_is_now(fake) -> None:
    def reports() -> list[str]:
        return [job["state"] for job in fake.jobs.values() if "report" in job["name"]]

    run()
    assert run("resources.default.timeout_min=7") == 0 and reports() == ["PENDING"]
    fewer = 'backbones=[{"name": "a", "pretrain": "a.yaml"}]'
    assert run(fewer) == 0 and reports() == ["CANCELLED", "PENDING"]
    assert run(fewer) == 0 and reports() == ["CANCELLED", "PENDING"]
    work(fake, fewer)
    assert run() == 0 and reports()[-1] == "PENDING"  # for a and b again
    assert run(fewer) == 0 and set(reports()) == {"CANCELLED"}  # all of a is done: made here


@pytest.mark.parametrize("name", ["SQUEUE_PARTITION", "SQUEUE_USERS", "SCANCEL_STATE"])
def test_a_users_filters_hide_no_job(fake, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "urgent")
    run()
    assert {standing.status for standing in standings_of().values()} == {"queued"}
    for job in fake.jobs:
        fake.set_state(job, name="renamed | by its owner")
    fake.calls  # noqa: B018
    assert run() == 0 and "sbatch" not in fake.calls
    assert execute("cancel", CONFIG, ["seeds=[0]"]) == 0
    assert {job["state"] for job in fake.jobs.values()} == {"CANCELLED"}


def test_the_newest_job_counts_whatever_the_clock_of_its_host(fake, monkeypatch) -> None:
    """The second host's clock is two minutes behind that of the first."""
    run()
    first = standings_of()["pretrain/a"].job_id
    for job in fake.jobs:
        fake.set_state(job, state="CANCELLED")
    clock = datetime.now(UTC) - timedelta(minutes=2)
    monkeypatch.setattr(
        "pipeline.executors.slurm.ledger.datetime", SimpleNamespace(now=lambda zone: clock)
    )
    run()
    standing = standings_of()["pretrain/a"]
    assert standing.status == "queued" and standing.job_id != first
    fake.calls  # noqa: B018
    assert run() == 0 and "sbatch" not in fake.calls


def test_jobs_of_an_older_config_are_named_and_ended_when_asked(
    fake, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    old = {stage.stage: stage.job_id for stage in standings_of().values() if "/b" in stage.stage}
    drop = 'backbones=[{"name": "a", "pretrain": "a.yaml"}]'
    for command in ("status", "plan", "run"):
        assert execute(command, CONFIG, ["seeds=[0]", drop], SLURM) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"pretrain/b is job {old['pretrain/b']}" in said and "--outdated" in said
    ours = standings_of()["pretrain/a"].job_id
    assert execute("cancel", CONFIG, ["seeds=[0]", drop], Options(outdated=True)) == 0
    assert {fake.jobs[job]["state"] for job in old.values()} == {"CANCELLED"}
    assert fake.jobs[ours]["state"] == "PENDING"
    assert run() == 0
    assert execute("run", CONFIG, ["seeds=[0]", drop], Options("slurm", replace=True)) == 0
    again = {job for job, row in fake.jobs.items() if row["state"] == "PENDING"}
    assert ours in again and not again & {s.job_id for s in standings_of().values()
                                          if s.backbone == "b"}  # fmt: skip


def test_two_names_of_one_recipe_are_one_job_also_when_one_is_new(fake) -> None:
    one = "backbones=[{name: a, pretrain: a.yaml}]"
    twins = "backbones=[{name: new, pretrain: a.yaml}, {name: a, pretrain: a.yaml}]"
    assert run(one) == 0
    num_jobs = fake.calls.count("sbatch")
    assert {standing.status for standing in standings_of(twins).values()} == {"queued"}
    assert run(twins) == 0 and fake.calls.count("sbatch") == 1  # a report with both names
    assert num_jobs == 4  # pretraining, conversion, both tasks, the report
    assert work(fake, one) == [
        "pretrain/a", "convert/a", "finetune/a--coco--seed0", "finetune/a--voc--seed0",
    ]  # fmt: skip
    standings = standings_of(twins)
    assert len(standings) == 8 and {each.status for each in standings.values()} == {"done"}
    assert execute("plan", CONFIG, ["seeds=[0]", twins], SLURM) == 0


def test_every_command_makes_few_calls(fake) -> None:
    folder = Path.cwd() / "plan"
    calls = {name: measured(name, 44, folder)[-1] for name in COMMANDS}
    assert calls["plan"] == "1 scontrol" and calls["status"] == "1 squeue"
    assert "4 sbatch --test-only" in calls["run"] and "7 sbatch," in calls["run"]
    assert "1 scancel" in calls["cancel"]
