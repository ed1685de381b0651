"""Malformed configs, annotations and images: exit 2, clear lines that name the file, no traceback.

The commands run in this process; the check before the start, else a child, too.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from pipeline import commands, entry, executors, worker
from transfer import command

HERE = Path(__file__).resolve().parent
TOOLS = HERE.parents[1] / "tools"
TIMEOUT = pytest.mark.timeout(60)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"faults_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny, malformed = load(HERE / "tiny.py"), load(HERE / "malformed.py")
pretrain_tool, probe_tool = load(TOOLS / "pretrain.py"), load(TOOLS / "probe.py")
Case = malformed.Case
PROBE = {
    "data": {"name": "labelled", "root": "data/labelled", "format": "imagefolder"},
    "image": {"size": 32},
    "knn": {"k": 1},
    "random_arch": "resnet18",
}
VOC_SET = {"format": "voc", "root": "data/voc", "split": "all", "class_names": ["one"]}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which nothing is wrong."""
    folder = tmp_path_factory.mktemp("sound")
    tiny.write_project(folder)
    for split in ("train", "val"):
        for name in ("a", "b"):
            tiny.draw_crops(folder / "data" / "labelled" / split / name, 2)
            (folder / "data" / "labelled" / split / name / "000.png").rename(
                folder / "data" / "labelled" / split / name / "0.png"
            )
    malformed.write_voc(folder / "data" / "voc")
    (folder / "probe.yaml").write_text(yaml.safe_dump(PROBE), encoding="utf-8")
    config = yaml.safe_load((folder / "tiny.yaml").read_text("utf-8"))
    config["probes"] = [{"name": "knn", "config": "probe.yaml"}]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


@pytest.fixture
def project(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy to spoil; nothing that is asked for may start a stage."""
    folder = tmp_path / "project"
    shutil.copytree(sound, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(executors.subprocess, "run", check_here)
    monkeypatch.setattr(commands, "run_local", started)
    return folder


def check_here(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """Do what the child of a check does."""
    faults = worker.check(json.loads(Path(arguments[-1]).read_text("utf-8")))
    return subprocess.CompletedProcess(arguments, 2 if faults else 0, "\n".join(faults), "")


class Started(Exception):
    """A stage would have been started."""


def started(*_: Any) -> None:
    raise Started


def refused(code: int, errors: str, file: str, word: str, prefix: str) -> None:
    lines = [line for line in errors.splitlines() if not line.startswith(("INFO", "WARNING"))]
    assert code == 2 and lines, errors
    assert all(line.startswith(prefix) and len(line) < 2000 for line in lines), errors
    assert any(Path(file).name in line for line in lines), errors
    assert word in errors and "Traceback" not in errors, errors
    assert not Path("hacked").exists()


def pipeline_refuses(case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code = entry.execute("run", Path("tiny.yaml"), [])
    refused(code, capsys.readouterr().err, case.file, case.word, "run_pipeline: ")
    assert not list(Path().glob("runs/**/manifest.json"))


def test_the_sound_project_would_start(project: Path) -> None:
    with pytest.raises(Started):
        entry.execute("run", Path("tiny.yaml"), [])


@TIMEOUT
@pytest.mark.parametrize("case", [*malformed.text_cases(), *malformed.value_cases()], ids=str)
def test_a_malformed_config_is_refused(
    case: Any, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.spoil(project)
    pipeline_refuses(case, capsys)
