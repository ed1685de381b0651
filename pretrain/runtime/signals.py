"""SIGTERM, SIGINT and SIGUSR2 ask a run to save and to end."""

from __future__ import annotations

import signal
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
    it has saved. The second SIGTERM ends the worker: a parent that leaves by an error sends two,
    and would wait for ever for one that hears none.
    """
    del worker
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
