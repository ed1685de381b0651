"""Submission on a real SLURM of two nodes: arrays, dependencies, nothing twice, no orphans."""

import json

import pytest

from pipeline.executors.slurm.ledger import read_ledger

pytestmark = pytest.mark.slurm


def test_a_plan_runs_to_its_report_and_nothing_is_submitted_twice(project) -> None:
    plan = project.plan(("a", "b"))
    assert project.run(plan) == 0
    ledger = read_ledger(plan.config.root)
    assert [entry.group for entry in ledger] == [
        "pretrain", "convert", "finetune-a", "finetune-b", "report",
    ]  # fmt: skip
    assert project.run(plan) == 0
    assert len(read_ledger(plan.config.root)) == 5
    standings = project.wait_done(plan)
    assert {standing.status for standing in standings.values()} == {"done"}
    page = plan.config.root / "report" / "results.json"
    project.wait(plan, lambda standings: page.exists(), 30)
    assert len(json.loads(page.read_text(encoding="utf-8"))["rows"]) == 4
    assert project.run(plan) == 0
    assert len(read_ledger(plan.config.root)) == 5
