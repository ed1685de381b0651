"""SIGTERM, SIGINT and SIGUSR2 ask a run to save and to end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: saved, to be started again
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopRequest:
    """Remembers, while it is entered, the last signal that asked to stop; 0 is none."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number


def leave_signals_to_parent(worker: int = 0) -> None:
    """Make a data-loading worker deaf to them; its parent ends it. For `worker_init_fn`.

    A scheduler signals every process of a job: workers that died of it would end the parent before
    it has saved. A parent that leaves sends a SIGTERM of its own and waits for the worker's end.
    """
    del worker
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # not dropped, but waited for
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process once its parent sends SIGTERM; handlers are not told who sent it.

    A process has at most one SIGTERM pending: the parent's is lost if another's is not taken yet.
    """
    parent = getattr(multiprocessing.parent_process(), "pid", None)  # not the fork server
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's workers do; the parent takes another code for a failure
