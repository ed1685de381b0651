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


@pytest.mark.slow
def test_no_network(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9/simple"
    answer = run(tmp_path, PIP_INDEX_URL=closed, PIP_RETRIES="1", PIP_CONFIG_FILE="/dev/null")
    assert answer.returncode == 2
    assert answer.stderr == (
        "setup: cannot get packages from PyPI (no network?); see .venv/install.log\n"
    )
    assert not (tmp_path / ".venv" / ".installed").exists()
