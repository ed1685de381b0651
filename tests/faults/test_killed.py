"""The local pipeline killed at random moments: it ends with the results of an undisturbed run.

`FAULT_KILLS` says how often (default 3); `make test-faults` asks for 20.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.stages.files import read_json
from pipeline.stages.run_folder import outputs_fault
from tests.faults import tiny
from tests.source import ROOT

NUM_KILLS = int(os.environ.get("FAULT_KILLS", "3"))
# What has begun when a kill of that phase may come: (pattern below the run folder, seconds after).
PHASES = {
    "pretraining": ("pretrain/*/config.json", 6.0),
    "pretraining's checkpoints": ("pretrain/*/last.pth", 2.0),
    "conversion": ("convert/*/config.json", 8.0),
    "fine-tuning": ("finetune/ours*/config.json", 8.0),
    "fine-tuning's checkpoints": ("finetune/ours*/last_checkpoint", 3.0),
    "evaluation": ("finetune/ours*/model_final.pth", 2.0),
    "report": ("finetune/ours*/manifest.json", 2.5),
}


def start(project: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tools" / "run_pipeline.py"), "run"]
    return subprocess.Popen(
        [*command, "--config-file", "tiny.yaml", f"output_dir={name}"],
        cwd=project, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(project: Path, name: str) -> Path:
    process = start(project, name)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return project / name / "tiny"


def results(folder: Path) -> dict[str, object]:
    """Everything a result is: numbers, and the sha256 of every file that a stage hands on."""
    report = json.loads((folder / "report" / "results.json").read_text("utf-8"))
    del report["command"]  # it names the folder
    found: dict[str, object] = {"report": report}
    for path in sorted(folder.glob("*/*/manifest.json")):
        manifest = json.loads(path.read_text("utf-8"))
        name = path.parent.name
        found[f"{name} metrics"] = manifest["metrics"]
        found[f"{name} outputs"] = {
            output: entry["sha256"]
            for output, entry in manifest["outputs"].items()
            # a torch file holds times and a zip's padding; what it leads to is compared instead
            if output.endswith((".json", ".pkl", ".jpg")) and output != "backbone.json"
        }
    return found


def processes_of(folder: Path) -> list[int]:
    """Processes that still work below the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until a file of the pattern is there, or the process has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(folder.glob(pattern)):
            return
        time.sleep(0.02)


def wait_for_silence(folder: Path) -> None:
    """Wait until nobody works below the folder any more."""
    deadline = time.monotonic() + 90
    while processes_of(folder):
        assert time.monotonic() < deadline, f"outlived its run: {processes_of(folder)}"
        time.sleep(0.1)


def whole(folder: Path) -> None:
    """Whatever says it is done is done: every output of every manifest is there, byte for byte."""
    for path in folder.glob("*/*/manifest.json"):
        assert outputs_fault(path.parent, read_json(path), thorough=True) is None
    report = folder / "report" / "results.json"
    if report.exists():
        json.loads(report.read_text("utf-8"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny pipeline without its second fine-tuning, in which no kill is aimed."""
    folder = tmp_path_factory.mktemp("faults")
    config = tiny.write_project(folder)
    backbones = [entry for entry in tiny.PIPELINE["backbones"] if "random" not in entry]
    config.write_text(yaml.safe_dump(tiny.PIPELINE | {"backbones": backbones}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> dict[str, object]:
    found = results(finish(project, "undisturbed"))
    assert len(found) == 7  # three stages' metrics and outputs, and the report
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_moments_the_results_are_the_same(
    project: Path, undisturbed: dict[str, object]
) -> None:
    dice = random.Random(NUM_KILLS)
    phases = list(PHASES) * (NUM_KILLS // len(PHASES) + 1)
    chosen = dice.sample(list(PHASES), min(NUM_KILLS, len(PHASES))) + phases[:NUM_KILLS]
    hit = []
    folder = project / "killed" / "tiny"
    for phase in sorted(chosen[:NUM_KILLS], key=list(PHASES).index):
        pattern, spread_s = PHASES[phase]
        process = start(project, "killed")
        wait_for(folder, pattern, process)
        time.sleep(dice.uniform(0, spread_s))
        hit.append((phase, process.poll() is None))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        wait_for_silence(folder)
        whole(folder)
    assert any(alive for _, alive in hit), "every run had ended before it was to be killed"
    assert results(finish(project, "killed")) == undisturbed
