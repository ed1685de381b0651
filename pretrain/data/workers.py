"""What a worker of a loader found wrong, without its traceback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")


def plain_faults(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield what a DataLoader yields.

    Raises:
        ValueError: a worker raised it; the words are the worker's own.
    """
    try:
        yield from batches
    except ValueError as error:
        raise ValueError(str(error).rstrip().rpartition("\nValueError: ")[2]) from None
