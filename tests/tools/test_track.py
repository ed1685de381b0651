"""`tools/track.py`: a command beside trackers, and its exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.local_runs import until
from tests.pipeline.tracking.stores import stub

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys, time
from pathlib import Path
Path("out").mkdir(exist_ok=True)
Path("out/metrics.jsonl").write_text('{"step": 1, "loss": 2}\\\\n')
words = sys.argv[1:]
while words == ["waits"]:
    time.sleep(0.1)
sys.exit(int(words[0]))
"""
COMMAND = [sys.executable, str(ROOT / "tools" / "track.py"), "{trackio: {}}", "out"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    stub(tmp_path / "stub", monkeypatch, "")
    (tmp_path / "run.py").write_text(RUN.replace("\\\\n", "\\n"), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("code", [0, 3])
def test_it_ends_with_the_commands_code_and_shows_what_was_logged(here: Path, code: int) -> None:
    words = [*COMMAND, sys.executable, "run.py", str(code)]
    assert subprocess.run(words, check=False).returncode == code
    assert (here / "stub.txt").read_text("utf-8").splitlines() == ["1 ['loss']"]


def test_a_signal_is_passed_on(here: Path) -> None:
    child = subprocess.Popen([*COMMAND, sys.executable, "run.py", "waits"])
    until((here / "out" / "metrics.jsonl").exists)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM


def test_a_command_that_is_not_there_is_told_in_one_line(here: Path) -> None:
    answer = subprocess.run([*COMMAND, "no-such-command"], check=False, capture_output=True)
    assert answer.returncode == 2
    (line,) = answer.stderr.decode().splitlines()
    assert line.startswith("track: ") and "no-such-command" in line
