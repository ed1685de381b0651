"""The scripts called in this process, where torch and detectron2 are imported once."""

import logging
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.source import ROOT

Answer = subprocess.CompletedProcess[str]
Run = Callable[..., Answer]


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Return what runs a script in an empty folder, without a process of its own."""
    monkeypatch.chdir(tmp_path)

    def call(script: str, *arguments: str) -> Answer:
        path = ROOT / "tools" / script
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(path), run_name="__main__")
        logging.disable(logging.NOTSET)  # what a script silences until its process ends
        code = left.value.code
        return subprocess.CompletedProcess(sys.argv, int(code or 0), *capsys.readouterr())

    return call
