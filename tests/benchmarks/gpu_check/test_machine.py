"""The machine's part: versions of what is installed, and modules that cannot be imported."""

from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.gpu_check import machine
from benchmarks.gpu_check.machine import broken_modules, nvidia_smi, versions


def test_versions_are_those_installed() -> None:
    there = versions()
    assert there["torch"] == version("torch") and "no-such-distribution" not in there


def test_a_module_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broken_modules() == {}
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "no_such_module.py").touch()
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (fault,) = broken_modules().values()
    assert fault == "ModuleNotFoundError: No module named 'pretrain.no_such_module'"


def test_without_a_driver_its_absence_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "nvidia-smi" in nvidia_smi()
