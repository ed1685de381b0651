"""The check before the start, by a worker that asks all stages whether they can run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.plan.plan import Plan
from pipeline.stages.run_folder import NOTE, State, check_config
from pipeline.stages.stage import STAGE_KINDS

MAX_NOTES = 20


def check_before_start(plan: Plan, states: dict[str, State], *, here: bool = True) -> list[str]:
    """Ask every stage that still has to run whether it can: data, images, configs, checkpoints.

    Returns what stops nothing but should be known, such as boxes that training leaves out. `here`
    asks too whether this machine has the GPUs; elsewhere the cluster knows.

    Raises:
        ValueError: one line for every fault.
    """
    waiting = [stage for stage in plan.stages if states[stage.name].status != "done"]
    for stage in plan.stages:
        check_config(stage)
    jobs: dict[str, dict[str, Any]] = {}
    for stage in waiting:
        settings = stage.settings | ({"seed": 0} if stage.seed is not None else {})
        job = {"module": STAGE_KINDS[stage.kind].module, "settings": settings, "here": here}
        named = job | {"source": stage.source}
        jobs.setdefault(json.dumps(job, sort_keys=True), named)  # seeds share one check
    if not jobs:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.json"
        path.write_text(json.dumps(list(jobs.values())), encoding="utf-8")
        answer = subprocess.run(
            [sys.executable, "-m", "pipeline.worker", "check", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
    if answer.returncode == 2:
        raise ValueError(answer.stdout.strip())
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the check before the start broke: {last}")
    notes = [line for line in answer.stdout.splitlines() if line.startswith(NOTE)]
    hidden = len(notes) - MAX_NOTES
    more = [f"{NOTE}{hidden} more; tools/check_data.py shows them all"] if hidden > 0 else []
    return notes[:MAX_NOTES] + more
