"""A `probe:` that came after a pretraining was finished: said, and measured on states it kept."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.plan.plan import Plan
from pipeline.stages.files import read_json, write_json
from pipeline.stages.provenance import with_this_code
from pipeline.stages.run_folder import JOB, LATE_PROBE, LOG, State
from pipeline.stages.stage import STAGE_KINDS, Stage
from pretrain.config.base import identity
from pretrain.config.pretrain import PretrainConfig


def late_probes(plan: Plan, states: dict[str, State]) -> dict[str, tuple[Stage, list[str]]]:
    """Return finished pretrainings whose `probe:` is not measured, with the states they kept."""
    late = {}
    for stage in plan.distinct:
        if stage.kind != "pretrain" or states[stage.name].status != "done":
            continue
        config = PretrainConfig.model_validate(stage.settings)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if config.probe is None or read_json(stage.run_dir / JOB)["settings"]["probe"]:
                continue
            stored = {}
            if (stage.run_dir / LATE_PROBE).exists():
                stored = read_json(stage.run_dir / LATE_PROBE)
            if not (stored.get("complete") and stored["probe"] == identity(config.probe)):
                late[stage.name] = stage, kept_states(stage.run_dir, config)
    return late


def kept_states(folder: Path, config: PretrainConfig) -> list[str]:
    """Return the files of states of epochs at which the probe measures; the last one's may be."""
    assert config.probe is not None
    every, names = config.probe.every_epochs, []
    for path in sorted(folder.glob("epoch_*.pth")):
        number = re.fullmatch(r"epoch_(\d+)\.pth", path.name)
        if number is not None and int(number[1]) % every == 0:
            names.append(path.name)
    ends_at_one = config.epochs is None or config.epochs % every == 0
    return names + (["last.pth"] if ends_at_one and (folder / "last.pth").exists() else [])


def late_probe_lines(plan: Plan, states: dict[str, State]) -> list[str]:
    """Return a line for every finished pretraining whose `probe:` came later."""
    lines = []
    for name, (stage, kept) in late_probes(plan, states).items():
        if kept:
            lines.append(
                f"{name}: probe: came after it was finished; run on this machine (or run --only "
                f"{name}) measures it on the states that were kept: {', '.join(kept)}"
            )
        else:
            lines.append(
                f"{name}: probe: came after it was finished, and no state of such an epoch was "
                f"kept (keep_every_epochs); python tools/probe.py {stage.result} measures its end"
            )
    return lines


def measure_late_probes(plan: Plan, states: dict[str, State]) -> list[str]:
    """Measure them in child processes, one after the other; return what went wrong."""
    faults = []
    for name, (stage, kept) in late_probes(plan, states).items():
        if not kept:
            continue
        with tempfile.TemporaryDirectory() as folder, (stage.run_dir / LOG).open("ab") as log:
            job = Path(folder) / "job.json"
            module = STAGE_KINDS[stage.kind].module
            write_json(job, {"module": module, "settings": stage.settings})
            command = [sys.executable, "-m", "pipeline.worker", "probe"]
            child = subprocess.run(
                [*command, str(stage.run_dir.absolute()), str(job)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=with_this_code(os.environ),
                check=False,
            )
        if child.returncode != 0:
            faults.append(f"{name}: probe: was not measured; see {stage.run_dir / LOG}")
    return faults
