"""Bounds of a reading: memory against the size of the file, steps, and CPU time.

A reading has one `Limits`, however many files are nested in it. What an opcode makes is paid for
before it is made, at about what CPython takes for it; what is paid for is never given back.
"""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

BASE_MEMORY = 2**27
MEMORY_PER_BYTE = 2
MAX_STEPS = 8_000_000
MAX_CPU_SECONDS = 40
OPCODE_BYTES = 40  # a number or reference, its place on the stack and its place in a list
HEAVY_OPCODE_BYTES = {
    code[0]: num_bytes
    for num_bytes, codes in {
        80: (pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE, pickle.LIST),
        120: (pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT,
              pickle.MEMOIZE, pickle.DICT),
        200: (pickle.MARK,),
        300: (pickle.EMPTY_SET, pickle.FROZENSET, pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX,
              pickle.OBJ, pickle.INST, pickle.BUILD, pickle.PERSID, pickle.BINPERSID),
        500: (pickle.GLOBAL, pickle.STACK_GLOBAL),
    }.items()
    for code in codes
}  # fmt: skip


class LimitError(ValueError):
    """The file takes more memory or time than any checkpoint of its size."""


class Limits:
    """What is left of memory and steps, for all that one file holds."""

    def __init__(self, file_bytes: int) -> None:
        self.memory = BASE_MEMORY + MEMORY_PER_BYTE * file_bytes
        self.steps = MAX_STEPS

    def take(self, num_bytes: int, steps: int = 0) -> None:
        """Pay for memory and steps.

        Raises:
            LimitError: there is not so much left.
        """
        self.memory -= num_bytes
        self.steps -= steps
        if self.memory < 0:
            raise LimitError("a few bytes of it unfold to more than the file holds")
        if self.steps < 0:
            raise LimitError(f"it holds more than {MAX_STEPS:,} parts, no checkpoint does")


@contextmanager
def cpu_time_limit(seconds: int = MAX_CPU_SECONDS) -> Iterator[None]:
    """Stop what runs inside after so much CPU time of the process; the last of the nets.

    Only the main thread can be stopped so; elsewhere nothing is limited.

    Raises:
        LimitError: the time is over.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise LimitError(f"it takes more than {seconds} seconds to read, no checkpoint does")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
