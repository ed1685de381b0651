"""Submission over a fake SLURM: the text, crashes in between, and what is refused."""

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
    assert "resources.pretrain: sbatch: sbatch: error: invalid partition specified" in errors
    assert fake.jobs == {} and read_ledger(plan_of().config.root) == []


def test_a_path_that_slurm_would_change_is_refused(fake) -> None:
    with pytest.raises(SlurmError, match="expands '%'"):
        slurm.run(plan_of("output_dir=a%jb"), Console(quiet=True))
