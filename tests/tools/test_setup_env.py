"""The environment script: one line for what is missing, exit code 2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    env |= {"PYTHON": sys.executable, "VENV": ".venv"} | changes
    command = ["/bin/sh", str(ROOT / "tools" / "setup_env.sh")]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False
    )  # fmt: skip


def test_no_recent_python(tmp_path: Path) -> None:
    answer = run(tmp_path, PYTHON="python2", PATH=str(tmp_path))
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("setup: no Python 3.11 or newer found (tried python2, python3)")
    assert len(answer.stderr.splitlines()) == 1


def disk(folder: Path, free_gb: int) -> str:
    """A PATH whose `df` says so many GB are free: the machine's own disk decides no test."""
    (folder / "bin").mkdir()
    df = folder / "bin" / "df"
    row = f"/dev/disk 1 1 {free_gb << 20} 1% /"
    df.write_text(f"#!/bin/sh\necho Filesystem\necho '{row}'\n", encoding="utf-8")
    df.chmod(0o755)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


@pytest.mark.slow
def test_full_disk(tmp_path: Path) -> None:
    answer = run(tmp_path, PATH=disk(tmp_path, free_gb=7))
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr == (
        "setup: only 7 GB free on this disk, wanted 8 for the environment; "
        "free some and run again\n"
    )
    assert not (tmp_path / ".venv").exists()


@pytest.mark.slow
def test_no_network(tmp_path: Path) -> None:
    answer = run(
        tmp_path,
        PATH=disk(tmp_path, free_gb=8),
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="1",
        PIP_CONFIG_FILE="/dev/null",
    )
    assert answer.returncode == 2
    assert answer.stderr == (
        "setup: cannot get packages from PyPI (no network?); see .venv/install.log\n"
    )
    assert not (tmp_path / ".venv" / ".installed").exists()
