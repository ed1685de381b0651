"""Signals in a data-loading worker; a run's own are in test_interruption.py."""

import signal
import subprocess
import sys
from pathlib import Path

ECHO = """
import sys
from pretrain.runtime.signals import leave_signals_to_parent
leave_signals_to_parent(3)
print("ready", flush=True)
for line in sys.stdin:
    print(line.strip(), flush=True)
"""


def test_a_worker_survives_all_signals_once_and_ends_at_the_second_sigterm() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[3],
    ) as worker:  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        for number in (signal.SIGUSR2, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            worker.send_signal(number)
        worker.stdin.write("alive\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "alive\n"
        worker.terminate()
        assert worker.wait() == -signal.SIGTERM
