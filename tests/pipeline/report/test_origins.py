"""Remarks on code, versions and bytes behind a table, of finished stages made by hand."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import main as commands
from pipeline.plan.build import load_plan
from pipeline.report.collect import collect
from pipeline.report.remarks import origin_remarks, read_manifests
from pipeline.stages.run_folder import prepare, write_manifest
from pipeline.stages.stage import Stage
from pipeline.worker import check_what_is_read

CONFIG = Path("configs/tiny.yaml")
CHANGES = ["tasks=[{name: voc, config: voc.yaml, title: VOC}]"]
FILES = ("index.html", "report.md")
CLEAN = {"commit": "a" * 40, "dirty": False}


def attempt(torch: str = "2.14", **code: Any) -> dict[str, Any]:
    return {"started": "now", "code": CLEAN | code, "python": "3.11", "packages": {"torch": torch}}


def finish(stage: Stage, *attempts: dict[str, Any], output: str | None = None) -> None:
    """Write what a finished stage leaves, without running it."""
    attempts = attempts or (attempt(),)
    prepare(stage)
    (stage.run_dir / "out.txt").write_text(output or stage.slug, encoding="utf-8")
    job = json.loads((stage.run_dir / "job.json").read_text("utf-8"))
    made = attempts[-1] | {"attempts": list(attempts)}
    read = check_what_is_read(stage.run_dir, job, {r: Path(p) for r, p in job["inputs"].items()})
    write_manifest(stage.run_dir, job, {"bbox/AP": 1.0}, made, read)


@pytest.fixture
def stages(fakes: Path) -> dict[str, Stage]:
    """Return the stages of one task, all of them finished by the same code."""
    plan = load_plan(CONFIG, CHANGES)
    for stage in plan.stages:
        finish(stage)
    return {stage.name: stage for stage in plan.stages}


def said() -> list[str]:
    plan = load_plan(CONFIG, CHANGES)
    return origin_remarks(plan, read_manifests(plan))


def doubts() -> dict[tuple[str, int], str]:
    rows = collect(load_plan(CONFIG, CHANGES)).rows
    assert all(row.dirty == bool(row.doubt) for row in rows)
    return {(row.backbone, row.seed): row.doubt for row in rows if row.doubt}


def test_one_code_and_one_set_of_packages_need_no_words(stages: dict[str, Stage]) -> None:
    assert said() == [] and doubts() == {}


def test_versions_that_differ_within_a_table_are_said_with_their_rows(
    stages: dict[str, Stage],
) -> None:
    finish(stages["finetune/a--voc--seed1"], attempt("2.13"))
    finish(stages["finetune/b--voc--seed0"], attempt("2.13"), attempt())
    assert said() == [
        "VOC: rows differ in torch: 2.13 in a (seed 1), 2.13 then 2.14 in b (seed 0); else 2.14"
    ]
    assert doubts() == {("b", 0): "code or packages that changed between attempts"}


def test_versions_of_what_rows_are_made_from_count_by_kind(stages: dict[str, Stage]) -> None:
    finish(stages["pretrain/b"], attempt(commit="b" * 40))
    assert said() == [f"VOC: rows differ in pretrain's commit: {'b' * 10} in b; else {'a' * 10}"]
    assert doubts() == {}  # a clean commit each


def test_a_row_is_marked_for_each_attempt_of_all_that_it_is_made_from(
    stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    finish(stages["pretrain/a"], attempt(dirty=True, diff="d1"), attempt())
    finish(stages["finetune/b--voc--seed1"], attempt(commit=None, dirty=None), attempt())
    modified = "modified (uncommitted) code in its pretrain"
    assert doubts() == {
        ("a", 0): modified,
        ("a", 1): modified,
        ("b", 1): "unknown code (no git)",
    }
    capsys.readouterr()
    commands.execute("report", CONFIG, CHANGES)
    terminal = capsys.readouterr().out
    commands.execute("status", CONFIG, CHANGES)
    files = (Path("runs/tiny/report", name).read_text("utf-8") for name in FILES)
    for text in (terminal, capsys.readouterr().out, *files):
        top = text.partition("<details")[0].partition("\n| Backbone")[0].partition("┃")[0]
        assert f"2 of 6 fine-tunings from {modified}, marked †" in top
        assert "1 of 6 fine-tunings from unknown code (no git), marked †" in top
        assert "rows differ in" in top


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def test_seeds_of_a_row_that_stand_on_two_backbones_are_said_and_marked(
    stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    finish(stages["convert/a"], output="made again")
    finish(stages["finetune/a--voc--seed1"])
    mixed = (
        f"a: its fine-tunings stand on different backbones: out.txt {sha('a')} (voc seed 0), "
        f"out.txt {sha('made again')} (voc seed 1)"
    )
    changed = (
        f"finetune/a--voc--seed0: made from out.txt of convert/a {sha('a')}, which was made again: "
        f"{sha('made again')}"
    )
    assert said() == [mixed, changed]
    assert list(doubts()) == [("a", 0), ("a", 1)]
    commands.execute("status", CONFIG, CHANGES)
    assert mixed in capsys.readouterr().out
    commands.execute("report", CONFIG, CHANGES)
    assert mixed in Path("runs/tiny/report/report.md").read_text("utf-8")


def test_a_link_of_the_chain_that_was_made_again_is_said(stages: dict[str, Stage]) -> None:
    finish(stages["pretrain/b"], output="made again")
    assert said() == [
        f"convert/b: made from out.txt of pretrain/b {sha('b')}, which was made again: "
        f"{sha('made again')}"
    ]
    finish(stages["pretrain/b"])
    assert said() == []  # the bytes count, not the time
