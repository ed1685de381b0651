"""Submission over a fake SLURM: the text, crashes in between, and what is refused."""

import os
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.commands import slurm
from pipeline.executors.slurm import submit
from pipeline.executors.slurm.ledger import read_ledger
from pipeline.executors.slurm.queue import SlurmError
from pipeline.executors.slurm.sbatch import sbatch_parameters, sbatch_text
from tests.pipeline.slurm_runs import plan_of, run, standings_of

pytestmark = pytest.mark.usefixtures("in_process")


def test_the_text_shown_is_the_text_submitted(fake) -> None:
    run()
    plan = plan_of()
    groups = {g.name: g for g in submit.job_groups(plan.stages, plan.config.resources, {})}
    entries = read_ledger(plan.config.root)
    assert {entry.group for entry in entries} == groups.keys()
    for entry in entries:
        folder = plan.config.root.absolute() / "slurm" / entry.token
        (script,) = folder.glob("*_submission.sh")
        written = script.read_text(encoding="utf-8")
        dependency = re.search(r"--dependency=(\S+)", written)
        code = next((plan.config.root.absolute() / "code").iterdir())
        group = groups[entry.group]
        parameters = sbatch_parameters(
            group, entry.job_name, dependency[1].strip("'") if dependency else "", folder, code
        )
        assert sbatch_text(parameters, group, folder, sys.executable) == written


def test_a_crash_after_sbatch_leaves_no_orphan(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    written = submit.write_submission

    def crash(root: Path, entry) -> None:
        if entry.job_id and entry.group == "convert":
            raise KeyboardInterrupt
        written(root, entry)

    with monkeypatch.context() as crashing:
        crashing.setattr(submit, "write_submission", crash)
        assert run() == 130
    before = set(fake.jobs)
    entries, _ = submit.settle(plan_of().config.root)
    assert [entry.job_id for entry in entries] == ["101", "102"]  # adopted
    assert set(fake.jobs) == before


def test_a_crash_inside_sbatch_is_cancelled_and_submitted_again(fake) -> None:
    run()
    plan = plan_of()
    (entry,) = (entry for entry in read_ledger(plan.config.root) if entry.group == "convert")
    path = plan.config.root / "slurm" / f"{entry.token}.json"
    path.write_text(path.read_text("utf-8").replace(f'"{entry.job_id}"', '""'), encoding="utf-8")
    next((plan.config.root / "slurm" / entry.token).glob("*_submitted.pkl")).unlink()
    submit.settle(plan.config.root)
    cancelled = {key for key, job in fake.jobs.items() if job["state"] == "CANCELLED"}
    assert cancelled == set(entry.task_ids)
    assert standings_of()["convert/a"].status == "missing"
    assert run() == 0
    assert standings_of()["convert/a"].status == "queued"


def test_what_sbatch_would_refuse_is_said_before_anything_is_submitted(
    fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("resources.default.partition=nowhere") == 2
    errors = capsys.readouterr().err
    assert "resources.pretrain.partition: sbatch: invalid partition specified" in errors
    assert fake.jobs == {} and read_ledger(plan_of().config.root) == []


def test_a_path_that_slurm_would_change_is_refused(fake) -> None:
    with pytest.raises(SlurmError, match="expands '%'"):
        slurm.run(plan_of("output_dir=a%jb"), Console(quiet=True))


def test_what_sbatch_refuses_in_the_middle_takes_back_the_rest(
    fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.refuse("tiny-finetune-a")
    assert run() == 2
    errors = capsys.readouterr().err
    assert errors.count("no more today") == 1 and "taken back" in errors
    assert {job["state"] for job in fake.jobs.values()} == {"CANCELLED"}
    standings = standings_of()
    assert {standing.status for standing in standings.values()} == {"missing"}
    assert "sbatch refused finetune-a: sbatch" in str(standings["convert/a"].reason)
    fake.refuse("nothing")
    assert run() == 0
    assert {standing.status for standing in standings_of().values()} == {"queued"}


def test_a_limit_on_jobs_is_filled_and_the_rest_waits_for_the_next_run(
    fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.say("scontrol", "MaxArraySize = 2\nMaxJobCount = 7\n")
    assert run() == 0
    assert "5 stages are left: MaxJobCount=7 leaves room for 6 jobs" in capsys.readouterr().out
    assert len(fake.jobs) == 6
    for job in fake.jobs:
        fake.set_state(job, purged=True)
    assert run() == 0
    for job in fake.jobs:
        assert int(job.partition("_")[2] or 0) < 2
    fake.say("scontrol", "MaxJobCount = 2\n")
    assert run() == 2
    assert "MaxJobCount=2 leaves" in capsys.readouterr().err


def test_a_kill_between_two_submissions_leaves_arrays(fake, monkeypatch) -> None:
    written = submit.write_submission

    def crash(root: Path, entry) -> None:
        if entry.group == "convert":
            raise KeyboardInterrupt
        written(root, entry)

    with monkeypatch.context() as crashing:
        crashing.setattr(submit, "write_submission", crash)
        assert run() == 130
    assert len(fake.jobs) == 2
    assert run() == 0
    assert {entry.group for entry in read_ledger(plan_of().config.root)} == {
        "pretrain", "convert", "finetune-random", "finetune-a", "finetune-b", "report",
    }  # fmt: skip


def test_files_written_for_slurm_follow_the_umask(fake) -> None:
    before = os.umask(0o077)
    try:
        run()
    finally:
        os.umask(before)
    root = plan_of().config.root
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 50 and {path.stat().st_mode & 0o077 for path in files} == {0}
