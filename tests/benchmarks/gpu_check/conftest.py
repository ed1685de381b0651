"""The sizes of a dry run, and digits where the parts look for them."""

from pathlib import Path

import pytest

from benchmarks.gpu_check import timing
from examples.digits.build import Sizes, build_digits


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cut recipes down as `GPU_CHECK_TINY` does; what is drawn lies in a folder of the test."""
    monkeypatch.setattr(timing, "TINY", True)
    monkeypatch.setattr(timing, "WORK", tmp_path)
    return tmp_path


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Draw a few digits into the working directory."""
    build_digits(tmp_path / "datasets" / "digits", sizes=Sizes(2, 2, 128, 20, 20))
    monkeypatch.chdir(tmp_path)
    return tmp_path
