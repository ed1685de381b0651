"""Signals in a data-loading worker; a run's own are in test_interruption.py."""

import multiprocessing
import signal
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pretrain.runtime.signals import STOP_SIGNALS, leave_signals_to_parent


def echo(pipe: Connection) -> None:
    leave_signals_to_parent(3)
    while True:
        pipe.send(pipe.recv())


def wait_until_taken(pid: int | None) -> None:
    """Wait until a SIGTERM to a process is taken: the next one would be lost in a pending one."""
    deadline = time.monotonic() + 60
    while True:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
        pending = int(status.partition("ShdPnd:")[2].split()[0], 16)
        if not pending >> (signal.SIGTERM - 1) & 1:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_worker_hears_no_signal_but_its_parents_sigterm(start: str) -> None:
    context = multiprocessing.get_context(start)
    ours, theirs = context.Pipe()
    worker = context.Process(target=echo, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
    worker.start()
    for number in (0, *STOP_SIGNALS, signal.SIGTERM, signal.SIGTERM):
        # not from its parent; `kill` is the shell's own, a bare system has no program of the name
        subprocess.run(["sh", "-c", f"kill -{int(number)} {worker.pid}"], check=True)
        ours.send(number)
        assert ours.poll(60) and ours.recv() == number
        wait_until_taken(worker.pid)
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0
