"""Malformed configs, annotations and images: exit 2, clear lines that name the file, no traceback.

The commands run in this process; the check before the start, else a child, too.
"""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import worker
from pipeline.commands import local, main
from pipeline.config.yaml_files import load_yaml
from pipeline.executors import preflight
from pipeline.plan import build
from tests.faults import malformed, tiny
from tests.scripts import load_script
from tests.source import ROOT
from transfer import finetune
from transfer.config.finetune import signed_keys
from transfer.config.recipe import config_faults
from transfer.detection import cli
from transfer.detection.cfg import build_faults

TOOLS = ROOT / "tools"
CONFIG = ["--config-file"]
REAL_RUN = subprocess.run
TIMEOUT = pytest.mark.timeout(60)
pretrain_tool, probe_tool = load_script("pretrain"), load_script("probe")
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
    for index, name in enumerate(("train/a", "train/b", "val/a", "val/b")):
        crops = folder / "data" / "labelled" / name
        tiny.draw_crops(crops, 2, seed=2 * index)  # a test image must not be a training image
        (crops / "000.png").rename(crops / "0.png")
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
    return enter(folder, monkeypatch)


@pytest.fixture
def configs(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of which only the configs may be spoilt: the data are shared."""
    folder = tmp_path / "project"
    shutil.copytree(sound, folder, ignore=shutil.ignore_patterns("data"))
    (folder / "data").symlink_to(sound / "data")
    return enter(folder, monkeypatch)


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(preflight.subprocess, "run", check_here)
    monkeypatch.setattr(local, "run_local", started)
    for module, name in ((build, "config_faults"), (build, "signed_keys"),
                         (finetune, "config_faults"), (finetune, "build_faults")):  # fmt: skip
        monkeypatch.setattr(module, name, ONCE[name])
    return folder


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Ask of each config once: most cases spoil something else than the task's."""
    answers: dict[str, Any] = {}

    def asked(*arguments: Any) -> Any:
        key = repr(arguments).replace(str(Path.cwd()), "")  # each case has a folder of its own
        if key not in answers:
            answers[key] = function(*arguments)
        return copy.copy(answers[key])

    return asked


ONCE = {each.__name__: once(each) for each in (config_faults, signed_keys, build_faults)}


def check_here(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """Do what the child of a check does."""
    jobs, answers = map(Path, arguments[-2:])
    answers.write_text(json.dumps(worker.check(json.loads(jobs.read_text("utf-8")))), "utf-8")
    return subprocess.CompletedProcess(arguments, 0, "", "")


class StartedError(Exception):
    """A stage would have been started."""


def started(*_: Any) -> None:
    raise StartedError


def refused(code: int, errors: str, case: Any, prefix: str) -> None:
    lines = [line for line in errors.splitlines() if not line.startswith(("INFO", "WARNING"))]
    assert code == 2 and lines, errors
    assert all(line.startswith(prefix) and len(line) < 2000 for line in lines), errors
    names = [Path(case.file).name, *([case.also] if case.also else [])]
    assert any(name in line for line in lines for name in names), errors
    assert case.word in errors and "Traceback" not in errors, errors
    assert not Path("hacked").exists()


def pipeline_refuses(case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.execute("run", Path("tiny.yaml"), [])
    refused(code, capsys.readouterr().err, case, "run_pipeline: ")
    assert not list(Path().glob("runs/**/manifest.json"))


def test_the_sound_project_would_start(project: Path) -> None:
    with pytest.raises(StartedError):
        main.execute("run", Path("tiny.yaml"), [])


@TIMEOUT
@pytest.mark.parametrize("case", [*malformed.text_cases(), *malformed.value_cases()], ids=str)
def test_a_malformed_config_is_refused(
    case: Any, configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.spoil(configs)
    pipeline_refuses(case, capsys)


@TIMEOUT
@pytest.mark.parametrize(
    "case",
    [*malformed.annotation_cases(), *malformed.image_cases(), *malformed.voc_cases()],
    ids=str,
)
def test_malformed_data_are_refused(
    case: Any, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "voc" in case.file:
        use_voc(project)
    case.spoil(project)
    pipeline_refuses(case, capsys)


def use_voc(folder: Path) -> None:
    """Let the task be measured on the set in VOC's layout, and train on the rest of it."""
    config = yaml.safe_load((folder / "tiny.yaml").read_text("utf-8"))
    config["datasets"] = {"mine": VOC_SET, "rest": VOC_SET | {"split": "rest"}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    task = yaml.safe_load((folder / "boxes.yaml").read_text("utf-8"))
    task["DATASETS"] = {"TRAIN": ["rest"], "TEST": ["mine"]}
    task["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] = 1
    (folder / "boxes.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def test_a_sound_voc_set_would_start(project: Path) -> None:
    use_voc(project)
    with pytest.raises(StartedError):
        main.execute("run", Path("tiny.yaml"), [])


# An empty config is one of detectron2's defaults, which name data sets that are not there.
ARE_DEFAULTS = {("boxes.yaml", "empty"), ("boxes.yaml", "only a comment")}
TOOL_CASES = [
    case
    for case in malformed.text_cases()
    if case.file != "tiny.yaml" and (case.file, case.name) not in ARE_DEFAULTS
]
COMMANDS = {
    "ours.yaml": ("", lambda: pretrain_tool.main([*CONFIG, "ours.yaml", "--output-dir", "out"])),
    "probe.yaml": ("", lambda: probe_tool.main(["random:resnet18", *CONFIG, "probe.yaml"])),
    "boxes.yaml": (
        "train_net: ",
        lambda: cli.main("", [*CONFIG, "boxes.yaml"], lambda path: load_yaml(Path(path))),
    ),
}


@TIMEOUT
@pytest.mark.parametrize("case", TOOL_CASES, ids=str)
def test_the_tools_refuse_it_too(
    case: Any, configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.spoil(configs)
    prefix, call = COMMANDS[case.file]
    refused(call(), capsys.readouterr().err, case, prefix)


@pytest.mark.parametrize("name", ["nested 100,000 deep", "anchor bomb", "python object"])
def test_as_a_process(name: str, project: Path) -> None:
    """What could take a process down is asked of a real one."""
    case = next(case for case in malformed.text_cases() if case.name == name)
    case.spoil(project)
    monkey = [sys.executable, str(TOOLS / "run_pipeline.py"), "plan", *CONFIG, "tiny.yaml"]
    answer = REAL_RUN(monkey, capture_output=True, text=True, check=False, timeout=60)
    refused(answer.returncode, answer.stderr, case, "run_pipeline: ")
