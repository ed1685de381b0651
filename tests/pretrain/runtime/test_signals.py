"""Signals in a data-loading worker; a run's own are in test_interruption.py."""

import multiprocessing
import signal
import subprocess
from multiprocessing.connection import Connection

import pytest

from pretrain.runtime.signals import STOP_SIGNALS, leave_signals_to_parent


def echo(pipe: Connection) -> None:
    leave_signals_to_parent(3)
    while True:
        pipe.send(pipe.recv())


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_worker_hears_no_signal_but_its_parents_sigterm(start: str) -> None:
    context = multiprocessing.get_context(start)
    ours, theirs = context.Pipe()
    worker = context.Process(target=echo, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
    worker.start()
    for number in (0, *STOP_SIGNALS, signal.SIGTERM, signal.SIGTERM):
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)  # not its parent
        ours.send(number)
        assert ours.poll(60) and ours.recv() == number
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0
