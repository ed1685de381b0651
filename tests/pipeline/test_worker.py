"""The worker with fake stages: its inputs, its failures and its end."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipeline.executors.local import run_local
from pipeline.executors.progress import Progress
from pipeline.plan.build import load_plan
from pipeline.plan.plan import Plan
from pipeline.stages.run_folder import MANIFEST, State, read_state

CONFIG = Path("configs/tiny.yaml")
RUN = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from pipeline.commands.main import execute
from pipeline.stages import stage
for name in stage.STAGE_KINDS:
    stage.STAGE_KINDS[name] = stage.StageKind("fake_stages", 1, ("out.txt",), "out.txt")
sys.exit(execute("run", Path("configs/tiny.yaml"), {changes!r}))
"""
ONLY_A = ["backbones=[{name: a, pretrain: a.yaml}]", "seeds=[0]"]


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
