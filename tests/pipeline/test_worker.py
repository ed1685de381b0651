"""The worker with fake stages: its inputs, its failures and its end."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.plan.build import load_plan
from pipeline.stages.run_folder import MANIFEST, read_state
from pipeline.worker import check_input
from tests.pipeline.local_runs import CONFIG, ONLY_A, RUN, ran, run, small_plan, until


def test_an_input_without_its_manifest_is_refused(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    run(plan)
    path = plan.stages[0].result
    check_input(path)
    (plan.stages[0].run_dir / MANIFEST).unlink()
    with pytest.raises(ValueError, match="its manifest is gone; run again to have it made again"):
        check_input(path)


def test_a_stage_that_is_killed_or_writes_nothing_has_failed(fakes: Path) -> None:
    Path("behaviour-a").write_text("die", encoding="utf-8")
    Path("behaviour-b").write_text("write nothing", encoding="utf-8")
    states = run(small_plan())
    assert "ended with code -9" in str(states["pretrain/a"].reason)
    pretrain = next(entry for entry in load_plan(CONFIG, []).stages if entry.name == "pretrain/a")
    assert read_state(pretrain) == states["pretrain/a"]
    assert "ended without writing out.txt" in str(states["pretrain/b"].reason)


def test_an_input_edited_by_hand_is_refused_and_made_again(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    run(plan)
    ran()
    by_name = {entry.name: entry for entry in plan.stages}
    backbone = by_name["convert/a"].run_dir / "out.txt"
    backbone.write_text("x" * backbone.stat().st_size, encoding="utf-8")
    for name in (MANIFEST, "out.txt"):
        (by_name["finetune/a--voc--seed0"].run_dir / name).unlink()
    states = run(plan)
    assert "sha256 differs" in str(states["finetune/a--voc--seed0"].reason)
    assert {state.status for state in run(plan).values()} == {"done"}


def test_a_killed_run_takes_its_child_with_it(fakes: Path) -> None:
    Path("behaviour-a").write_text("hang", encoding="utf-8")
    script = RUN.format(paths=sys.path, changes=ONLY_A)
    parent = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: Path("hanging").exists() or parent.poll() is not None)
    assert parent.poll() is None
    pretrain = next(entry for entry in small_plan(ONLY_A).stages if entry.name == "pretrain/a")
    assert read_state(pretrain).status == "running"
    parent.kill()
    parent.wait()
    until(lambda: read_state(pretrain).status != "running")
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
