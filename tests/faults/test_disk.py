"""A run folder that is full, read-only, moved, or has been edited: one line, and nothing lost.

The stages are fakes; the disk is a real small one, which only root can mount.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "pipeline"
RUN = """
import sys
from pathlib import Path
from pipeline.commands.main import execute
from pipeline.stages import stage
for name in stage.STAGE_KINDS:
    stage.STAGE_KINDS[name] = stage.StageKind("fake_stages", 1, ("out.txt",), "out.txt")
sys.exit(execute(sys.argv[1], Path("tiny.yaml"), []))
"""
CONFIG = {
    "name": "tiny",
    "backbones": [{"name": "random", "random": True}],
    "tasks": [{"name": "boxes", "config": "boxes.yaml"}],
    "seeds": [0],
    "datasets": {"mine": {"format": "coco", "annotations": "mine.json", "images": "images"}},
}
MOUNTED = "mkdir -p runs && mount -t tmpfs -o size={size}k tmpfs runs && {before} && {command}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"fakes do not look")
    Path("mine.json").write_text("{}", encoding="utf-8")
    task = {"DATASETS": {"TRAIN": ["mine"], "TEST": ["mine"]}}
    Path("boxes.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    Path("tiny.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    Path("run.py").write_text(RUN, encoding="utf-8")
    return tmp_path


def call(command: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, (ROOT, FAKES)))
    return subprocess.run(
        ["bash", "-c", command], env={**os.environ, "PYTHONPATH": paths},
        text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip


def pipeline(command: str) -> subprocess.CompletedProcess[str]:
    return call(f"{sys.executable} run.py {command}")


def private(command: str, size_kb: int, before: str) -> subprocess.CompletedProcess[str]:
    """Run in a mount namespace of its own, whose `runs` is a disk of so many kilobytes."""
    if os.geteuid() != 0 or call("unshare -m true").returncode != 0:
        pytest.skip("a small disk wants root, and a machine that allows mount namespaces")
    inner = MOUNTED.format(size=size_kb, before=before, command=command)
    return call(f"unshare -m bash -c '{inner}'")


def ran() -> list[str]:
    path = Path("ran.txt")
    lines = path.read_text("utf-8").split() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def results(folder: Path) -> object:
    return json.loads((folder / "tiny" / "report" / "results.json").read_text("utf-8"))["rows"]


@pytest.mark.parametrize("free_kb", [0, 8, 24])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(project: Path, free_kb: int) -> None:
    """Whatever write it is that fails: what is left never counts as done, nor as a report."""
    run = f"{sys.executable} run.py run"
    before = f"head -c {256 - free_kb}k /dev/zero > runs/ballast"
    after = "echo code $? >&2; cp -r runs kept; mount -o remount,size=100m runs"
    answer = private(f"{{ {run}; {after}; {run} && cp -r runs finished; }}", 256, before)
    first, _, second = answer.stderr.partition("code ")
    assert "Traceback" not in answer.stderr, answer.stderr
    assert second.startswith(("1\n", "2\n")), answer.stderr
    if second.startswith("2\n"):
        assert first.count("\n") == 1 and "No space left" in first and "runs/tiny" in first, first
    for manifest in Path("kept").glob("**/manifest.json"):
        json.loads(manifest.read_text("utf-8"))
    for report in Path("kept").glob("**/results.json"):
        json.loads(report.read_text("utf-8"))
    assert answer.returncode == 0 and len(list(Path("finished").glob("**/manifest.json"))) == 1
    assert results(Path("finished"))


def test_a_read_only_folder_is_one_line(project: Path) -> None:
    read_only = "mount -o remount,ro runs"
    answer = private(f"{sys.executable} run.py run", 256, read_only)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.count("\n") == 1 and "Read-only file system" in answer.stderr


def test_a_moved_folder_stays_done(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert pipeline("run").returncode == 0 and len(ran()) == 1
    before = results(Path("runs"))
    moved = tmp_path_factory.mktemp("elsewhere") / "deeper"
    shutil.move(project, moved)
    os.chdir(moved)
    for command in ("report", "run", "status"):
        answer = pipeline(command)
        assert answer.returncode == 0, answer.stderr
    assert ran() == [] and results(Path("runs")) == before
    assert "1 done" in answer.stdout


def test_a_data_set_that_changed_is_noticed(project: Path) -> None:
    assert pipeline("run").returncode == 0 and len(ran()) == 1
    Path("mine.json").write_text('{"changed": 1}', encoding="utf-8")
    answer = pipeline("plan")
    assert "1 to run" in answer.stdout
    assert "again: finetune/random--boxes--seed0: data set mine has changed (annotations)" in (
        answer.stdout
    )
    assert pipeline("run").returncode == 0 and len(ran()) == 1
