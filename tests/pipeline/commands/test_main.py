"""The commands start quickly and end well when nobody reads on; what `plan` says of code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import main as commands
from pipeline.commands.main import Options
from pipeline.report import remarks
from tests.pipeline.local_runs import CONFIG

ROOT = Path(__file__).resolve().parents[3]


def test_status_imports_no_torch_and_no_plots() -> None:
    code = (
        "import sys, pipeline.commands.main\n"
        "bad = {'torch', 'matplotlib', 'submitit', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("executor", [None, "slurm"])
@pytest.mark.parametrize("command", commands.NAMES)
def test_an_option_of_another_command_is_refused(command: str, executor: str | None) -> None:
    given = {
        "watch": ("--watch goes with status", ("status",)),
        "as_json": ("--json goes with status", ("status",)),
        "stage": ("--stage goes with logs", ("logs",)),
        "only": ("--only goes with run on this machine", ("run",) if executor is None else ()),
        "yes": ("--yes goes with clean", ("clean",)),
    }
    for name, (told, commands_with_it) in given.items():
        options = Options(executor=executor, **{name: ("x",) if name == "only" else True})
        if command in commands_with_it:
            assert commands.action_of(command, options)
        else:
            with pytest.raises(ValueError, match=told):
                commands.action_of(command, options)


@pytest.mark.usefixtures("in_process")
def test_plan_says_that_another_config_has_the_name(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(CONFIG, "configs/copy.yaml")
    for executor in ("local", "slurm"):
        options = Options(executor=executor)
        for config in (CONFIG, Path("configs/copy.yaml")):
            assert commands.execute("plan", config, ["seeds=[0]"], options) == 0
        assert "tiny.yaml has the same name, 'tiny'" in capsys.readouterr().out


@pytest.mark.usefixtures("in_process")
def test_plan_says_that_finished_stages_are_from_other_code(
    fakes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["seeds=[0]", "backbones=[{name: random, random: true}]"]
    assert commands.execute("run", CONFIG, changes) == 0
    commands.execute("plan", CONFIG, changes)
    assert "their identity is unchanged" not in capsys.readouterr().out
    now = remarks.origin()
    later = {"code": {"commit": "f" * 40, "dirty": False}, "python": now["python"]}
    packages = now["packages"] | {"torch": "99.0"}
    monkeypatch.setattr(remarks, "origin", lambda: later | {"packages": packages})
    for executor in ("local", "slurm"):
        commands.execute("plan", CONFIG, changes, Options(executor=executor))
        (line,) = [text for text in capsys.readouterr().out.splitlines() if "identity" in text]
        assert line.startswith("2 finished stages are from commit ")
        assert line.endswith(
            f" (now {'f' * 10}), 2 from torch {now['packages']['torch']} (now 99.0); "
            "their identity is unchanged"
        )


PROGRAM = """
import sys
from pathlib import Path
from pipeline.commands.main import Options, execute
from pipeline.stages import stage
for name in stage.STAGE_KINDS:
    stage.STAGE_KINDS[name] = stage.StageKind("fake_stages", 1, ("out.txt",), "out.txt")
options = Options(executor="slurm", as_json=sys.argv[1] == "status")
sys.exit(execute(sys.argv[1], Path("configs/tiny.yaml"), [], options))
"""


@pytest.mark.parametrize("command", ["status", "run"])
def test_a_closed_pipe_is_no_fault_of_a_plan(fake, command: str) -> None:
    """As `... | grep -q` closes it; `run` submits its plan to the end all the same."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-c", PROGRAM, command]
    child = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (child.returncode, child.stderr) == (0, b"")
    names = [job["name"] for job in fake.jobs.values()]
    assert any("tiny-report" in name for name in names) is (command == "run")
