"""The command: its exit status, its one line, and that it leaves a working detectron2 alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import load_script
from transfer.detectron2_wheel import install
from transfer.detectron2_wheel.edits import ADDED, EDITS

SCRIPT = Path(__file__).parents[2] / "tools" / "install_detectron2.py"
WORKING = install.Installed("9.9", "/there/detectron2", compiled=True, problem="")


@pytest.fixture
def tool():
    return load_script("install_detectron2")


@pytest.fixture
def nothing_installed(monkeypatch):
    """Lets the command find no detectron2, and fails the test when it calls pip."""

    def pip(*arguments: str) -> None:
        raise AssertionError(f"pip {arguments}")

    monkeypatch.setattr(install, "probe", lambda first=None: None)
    monkeypatch.setattr(install, "unmet_requirements", list)
    monkeypatch.setattr(install, "run_pip", pip)


def test_a_working_detectron2_is_left_alone(tool, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(install, "probe", lambda first=None: WORKING)
    monkeypatch.setattr(install, "run_pip", None)  # calling it would raise
    assert tool.main(["--wheel-dir", str(tmp_path / "w")]) == 0
    wanted = "detectron2 9.9 at /there/detectron2, with its C++ part: nothing to do\n"
    assert capsys.readouterr() == (wanted, "")
    assert not (tmp_path / "w").exists()


def test_a_wrong_archive_is_one_line_and_status_2(tool, nothing_installed, capsys, tmp_path):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"something else")
    assert tool.main(["--archive", str(archive), "--wheel-dir", str(tmp_path / "w")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"install_detectron2: {archive}: sha256 is f41f3fa625ff120d")
    assert err.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_a_missing_archive_is_one_line_and_status_2(tool, nothing_installed, capsys, tmp_path):
    assert tool.main(["--archive", str(tmp_path / "none.tar.gz")]) == 2
    err = capsys.readouterr().err
    assert "none.tar.gz" in err
    assert err.count("\n") == 1


def test_missing_requirements_are_named_together(tool, nothing_installed, monkeypatch, capsys):
    unmet = ["torch>=2.0 (found none)", "yacs>=0.1.8 (found 0.1.6)"]
    monkeypatch.setattr(install, "unmet_requirements", lambda: unmet)
    assert tool.main([]) == 2
    wanted = "detectron2 needs torch>=2.0 (found none), yacs>=0.1.8 (found 0.1.6); install first\n"
    assert capsys.readouterr().err.endswith(wanted)


def test_an_interrupt_is_one_line_and_status_2(tool, monkeypatch, capsys):
    def interrupted(first=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "probe", interrupted)
    assert tool.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_print_edits_lists_every_edit_once_and_looks_for_nothing():
    command = [sys.executable, str(SCRIPT), "--print-edits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(EDITS) + len(ADDED)
    assert "detectron2/data/datasets/pascal_voc.py (1x): numpy dropped" in done.stdout


def test_its_flags(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert {word for word in words if word.startswith("--")} >= {
        "--archive",
        "--wheel-dir",
        "--force",
        "--print-edits",
    }
