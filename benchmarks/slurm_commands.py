"""Seconds and calls of `plan`, `run`, `status` and `cancel` of a large plan on the SLURM at hand.

Stages only pretend, and their jobs are held in the queue; `cancel` ends them.
Tested in tests/benchmarks/test_slurm_commands.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.rows import Table, print_rows
from pipeline.commands.main import Options, action_of
from pipeline.config.schema import PipelineConfig
from pipeline.executors.slurm import queue
from pipeline.plan.plan import Plan
from pipeline.stages.stage import STAGE_KINDS, Stage, StageKind

COMMANDS = ("plan", "run", "status", "cancel")
TASKS, SEEDS = 3, 3
ROOT = Path(__file__).resolve().parents[1]


def benchmark_slurm(*, stages: int = 220, dry_stages: int = 5_000) -> list[Table]:
    """Print a row for each command, its start included; the larger plan is only planned."""
    with tempfile.TemporaryDirectory() as folder:
        small = [measured(name, stages, Path(folder)) for name in COMMANDS]
        rows = [*small, measured("plan", dry_stages, Path(folder) / "dry")]
    columns = ("command", "seconds:.1f", "CPU s:.1f", "MB at most:.0f", "calls")
    return [print_rows("commands of a plan on SLURM", columns, rows)]


def measured(command: str, num_stages: int, folder: Path) -> tuple[str, float, float, float, str]:
    """Return the row of one command, run as a process of its own in `folder`."""
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "benchmarks.slurm_commands", command, str(num_stages)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started, before = time.perf_counter(), _cpu_s()
    child = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.perf_counter() - started
    said = json.loads(child.stdout.splitlines()[-1])
    calls = ", ".join(f"{count} {name}" for name, count in sorted(said["calls"].items()))
    name = f"{command} of {said['stages']} stages"
    return name, seconds, _cpu_s() - before, said["peak_mb"], calls or "none"


def _cpu_s() -> float:
    """Return the CPU seconds of all processes started so far, which other load changes less."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pretended_plan(num_stages: int) -> Plan:
    """Return a plan of about so many stages: backbones x tasks x seeds, and two before each."""
    for name, real in list(STAGE_KINDS.items()):
        STAGE_KINDS[name] = StageKind(
            "benchmarks.slurm_commands", real.version, ("out.txt",), "out.txt"
        )
    names = [f"b{index:03d}" for index in range(max(1, num_stages // (2 + TASKS * SEEDS)))]
    tasks = [f"t{index}" for index in range(TASKS)]
    config = PipelineConfig.model_validate(
        {
            "name": "pretended",
            "backbones": [{"name": name, "pretrain": "x.yaml"} for name in names],
            "tasks": [{"name": name, "config": "x.yaml"} for name in tasks],
            "seeds": list(range(SEEDS)),
            "resources": {"default": {"cpus_per_gpu": 1, "extra": {"hold": True}}},
        }
    )
    root = config.output_dir / config.name
    stages = []
    for name in names:
        pretrain = Stage("pretrain", name, {}, {}, root, {}, name)
        convert = Stage("convert", name, {}, {}, root, {"checkpoint": pretrain}, name)
        stages += [pretrain, convert]
        for task in tasks:
            for seed in range(SEEDS):
                slug = f"{name}--{task}--seed{seed}"
                settings = {"seed": seed, "detectron2": {}}
                stages.append(
                    Stage(
                        "finetune", slug, settings, settings, root, {"weights": convert}, name,
                        task=task, seed=seed,
                    )
                )  # fmt: skip
    return Plan(config, Path("x.yaml"), (), tuple(stages))


def check_stage(config: dict[str, Any]) -> list[str]:
    """Return no faults: this module stands for every stage."""
    return []


def main(command: str, num_stages: int) -> int:
    """Run one command in this process; print its calls and peak memory as JSON."""
    calls: Counter[str] = Counter()
    run = subprocess.run

    def counted(words: list[str], **how: Any) -> Any:
        name = Path(words[0]).name
        if name in ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo"):
            calls[name + (" --test-only" if "--test-only" in words else "")] += 1
        return run(words, **how)

    queue.subprocess.run = counted  # type: ignore[attr-defined]
    plan = pretended_plan(num_stages)
    with contextlib.redirect_stdout(io.StringIO()):
        action_of(command, Options("slurm"))(plan, Console(file=io.StringIO(), width=200))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"calls": calls, "peak_mb": peak_mb, "stages": len(plan.stages)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
