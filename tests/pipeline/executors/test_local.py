"""The local executor with fake stages: order, reuse, failure, interruption, locks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.commands import main as commands
from pipeline.executors import local as executors
from pipeline.executors.local import run_local
from pipeline.executors.preflight import check_before_start
from pipeline.executors.progress import Progress
from pipeline.plan.build import load_plan
from pipeline.plan.plan import Plan
from pipeline.report.collect import all_states
from pipeline.report.write import make_report
from pipeline.stages import stage
from pipeline.stages.run_folder import FAILURE, LOG, MANIFEST, State, lock, read_state
from pipeline.stages.stage import StageKind
from transfer.datasets import check as data_check

CONFIG = Path("configs/tiny.yaml")
RUN = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from pipeline.commands import main as commands
from pipeline.stages import stage
for name in stage.STAGE_KINDS:
    stage.STAGE_KINDS[name] = stage.StageKind("fake_stages", 1, ("out.txt",), "out.txt")
sys.exit(commands.execute("run", Path("configs/tiny.yaml"), {changes!r}))
"""
ONLY_A = ["backbones=[{name: a, pretrain: a.yaml}]", "seeds=[0]"]
ONLY_RANDOM = ["backbones=[{name: random, random: true}]", "seeds=[0]"]


@pytest.fixture
def fakes(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in stage.STAGE_KINDS:
        monkeypatch.setitem(
            stage.STAGE_KINDS, name, StageKind("fake_stages", 1, ("out.txt",), "out.txt")
        )
    here = Path(__file__).resolve()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here.parents[3], here.parents[1]))))
    monkeypatch.setattr(executors, "POLL_S", 0.02)
    return project


def run(plan: Plan) -> dict[str, State]:
    with Progress(Console(quiet=True), len(plan.stages), 0) as progress:
        return run_local(plan, progress)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # a loop without rest takes the core from what it waits for


def ran() -> list[str]:
    path = Path("ran.txt")
    lines = path.read_text(encoding="utf-8").split() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def small_plan(changes: list[str] | None = None) -> Plan:
    return load_plan(CONFIG, changes or ["seeds=[0]"])


def test_everything_runs_once_in_order_and_never_again(fakes: Path) -> None:
    plan = small_plan()
    states = run(plan)
    assert {state.status for state in states.values()} == {"done"}
    assert ran() == [entry.slug for entry in plan.stages]
    assert run(plan) == states
    assert ran() == []
    tuned = plan.stages[-1]
    manifest = json.loads((tuned.run_dir / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["metrics"] == {"bbox/AP": 10.0, "bbox/AP50": None}
    assert manifest["outputs"]["out.txt"]["size"] == (tuned.run_dir / "out.txt").stat().st_size
    assert manifest["provenance"]["wall_time_s"] >= 0
    assert json.loads((tuned.run_dir / "config.json").read_text("utf-8")) == tuned.record


def test_a_failed_stage_stops_only_what_needs_it(fakes: Path) -> None:
    Path("behaviour-a").write_text("fail", encoding="utf-8")
    plan = small_plan()
    states = run(plan)
    assert states["pretrain/a"] == State("failed", "the loss became NaN at step 3")
    assert states["convert/a"].reason == (
        "needs pretrain/a, which failed: the loss became NaN at step 3"
    )
    assert states["finetune/a--voc--seed0"].status == "failed"
    others = [state for name, state in states.items() if "/a" not in name]
    assert {state.status for state in others} == {"done"}
    pretrain = next(entry for entry in plan.stages if entry.name == "pretrain/a")
    assert "Traceback" in (pretrain.run_dir / LOG).read_text(encoding="utf-8")
    assert not (pretrain.run_dir / MANIFEST).exists()
    ran()
    Path("behaviour-a").unlink()
    assert {state.status for state in run(plan).values()} == {"done"}
    assert ran() == ["a", "a", "a--coco--seed0", "a--voc--seed0"]
    assert not (pretrain.run_dir / FAILURE).exists()


def test_a_stage_that_is_killed_or_writes_nothing_has_failed(fakes: Path) -> None:
    Path("behaviour-a").write_text("die", encoding="utf-8")
    Path("behaviour-b").write_text("write nothing", encoding="utf-8")
    states = run(small_plan())
    assert "ended with code -9" in str(states["pretrain/a"].reason)
    pretrain = next(entry for entry in load_plan(CONFIG, []).stages if entry.name == "pretrain/a")
    assert read_state(pretrain) == states["pretrain/a"]
    assert "ended without writing out.txt" in str(states["pretrain/b"].reason)


def test_a_report_follows_results_that_were_made_again(fakes: Path) -> None:
    plan = small_plan(ONLY_RANDOM)
    run(plan)
    make_report(plan)
    page = Path("runs/tiny/report/index.html")
    before = page.stat().st_mtime_ns
    make_report(plan)
    assert page.stat().st_mtime_ns == before
    manifest = plan.stages[0].run_dir / MANIFEST
    manifest.write_text(manifest.read_text("utf-8").replace("10.0", "99.0"), encoding="utf-8")
    make_report(plan)
    assert "99.0" in Path("runs/tiny/report/results.csv").read_text(encoding="utf-8")
    page.unlink()
    make_report(plan)
    assert page.exists()


def test_changed_or_lost_outputs_are_noticed_and_made_again(fakes: Path) -> None:
    plan = small_plan(ONLY_RANDOM)
    run(plan)
    ran()
    by_name = {entry.name: entry for entry in plan.stages}
    (by_name["finetune/random--coco--seed0"].run_dir / "out.txt").unlink()
    state = read_state(by_name["finetune/random--coco--seed0"])
    assert state.status == "missing" and "gone since it was made" in str(state.reason)
    run(plan)
    assert ran() == ["random--coco--seed0"]
    with (by_name["finetune/random--voc--seed0"].run_dir / "out.txt").open("r+") as file:
        file.truncate(3)
    assert {state.status for state in run(plan).values()} == {"done"}
    assert ran() == ["random--voc--seed0"]


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


def test_another_config_in_a_run_folder_is_an_error_with_the_difference(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    run(plan)
    path = plan.stages[0].run_dir / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["config"]["seed"] = 99
    path.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.seed: stored 99, wanted 0"):
        check_before_start(plan, all_states(plan))


def test_faults_found_before_the_start_run_nothing(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("check.txt").write_text("/a.jpg: not an image\nseed is odd", encoding="utf-8")
    assert commands.execute("run", CONFIG, []) == 2
    errors = capsys.readouterr().err.splitlines()
    configs = [f"configs/{name}.yaml: " for name in ("a", "b", "coco", "voc")]
    odd = [f"run_pipeline: {where}seed is odd" for where in (*configs, "")]
    assert errors[0] == "run_pipeline: /a.jpg: not an image"
    assert sorted(errors[1:]) == sorted(odd)
    assert ran() == []


def test_what_the_check_notes_is_told_once_and_stops_nothing(fakes: Path) -> None:
    assert data_check.logger.name == "transfer.datasets.check"
    plan = small_plan()
    states = {stage.name: State("missing") for stage in plan.stages}
    assert check_before_start(plan, states) == []
    Path("notes.txt").write_text("/a.json: annotation 1: no width\nb [x]", encoding="utf-8")
    notes = ["note: /a.json: annotation 1: no width", "note: b [x]"]
    assert check_before_start(plan, states) == notes
    Path("notes.txt").write_text("\n".join(map(str, range(22))), encoding="utf-8")
    found = check_before_start(plan, states)
    assert found[:20] == [f"note: {number}" for number in range(20)]
    assert found[20:] == ["note: 2 more; tools/check_data.py shows them all"]
    Path("check.txt").write_text("odd", encoding="utf-8")
    with pytest.raises(ValueError, match="odd") as error:
        check_before_start(plan, states)
    assert "note: " not in str(error.value)


def test_what_this_machine_lacks_stops_a_local_run_only(fakes: Path) -> None:
    Path("machine.txt").write_text("8 GPUs, wanted here 9", encoding="utf-8")
    plan = small_plan()
    states = {stage.name: State("missing") for stage in plan.stages}
    with pytest.raises(ValueError, match="8 GPUs, wanted here 9"):
        check_before_start(plan, states)
    check_before_start(plan, states, here=False)


def test_exit_code_and_report_say_that_a_stage_failed(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["backbones=[{name: random, random: true}, {name: a, pretrain: a.yaml}]"]
    Path("behaviour-random--voc--seed1").write_text("fail", encoding="utf-8")
    assert commands.execute("run", CONFIG, changes) == 1
    assert "report:" in capsys.readouterr().out
    results = json.loads(Path("runs/tiny/report/results.json").read_text(encoding="utf-8"))
    assert len(results["rows"]) == 7
    failed = ("random", "voc", 1)
    named = {(row["backbone"], row["task"], row["seed"]) for row in results["rows"]}
    assert len(named) == 7 and failed not in named
    assert all(row["metrics"]["bbox/AP"] == 10.0 + row["seed"] for row in results["rows"])
    markdown = Path("runs/tiny/report/report.md").read_text(encoding="utf-8")
    assert "the loss became NaN at step 3" in markdown
    assert commands.execute("status", CONFIG, changes) == 1
    Path("behaviour-random--voc--seed1").unlink()
    assert commands.execute("run", CONFIG, changes) == 0
    capsys.readouterr()
    ran()
    page = Path("runs/tiny/report/index.html").stat().st_mtime_ns
    assert commands.execute("run", CONFIG, changes) == 0
    assert ran() == []
    assert Path("runs/tiny/report/index.html").stat().st_mtime_ns == page


def test_interrupted_run_leaves_nothing_at_work_and_goes_on(fakes: Path) -> None:
    Path("behaviour-a").write_text("hang", encoding="utf-8")
    script = RUN.format(paths=sys.path, changes=ONLY_A)
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    until(lambda: Path("hanging").exists() or parent.poll() is not None)
    assert parent.poll() is None
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 2
    parent.send_signal(signal.SIGTERM)
    _, errors = parent.communicate(timeout=60)
    assert parent.returncode == 130 and "interrupted" in errors
    pretrain = next(entry for entry in small_plan(ONLY_A).stages if entry.name == "pretrain/a")
    assert read_state(pretrain) == State("missing")
    ran()
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert ran()[0] == "a"


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


def test_a_lock_is_exclusive_and_names_its_holder(tmp_path: Path) -> None:
    from pipeline.stages.run_folder import LockedError

    path = tmp_path / "lock"
    with lock(path), pytest.raises(LockedError, match=r"process \d+ on"), lock(path):
        pass
    with lock(tmp_path / "lock"):
        pass
