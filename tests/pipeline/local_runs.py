"""Runs of the small project's plan on this machine, and what its fake stages did."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipeline.executors.local import Progress, run_local
from pipeline.plan.build import load_plan
from pipeline.plan.plan import Plan
from pipeline.stages.run_folder import State

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
ONLY_RANDOM = ["backbones=[{name: random, random: true}]", "seeds=[0]"]


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
