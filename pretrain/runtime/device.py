"""Copies between a CPU and a GPU for which neither waits, and work beside that of the steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` on `device`; a copy from pinned memory is queued, and nothing waits for it."""
    if device.type != "cuda" or x.device.type == "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """A tensor on its way to the CPU, where what has been queued after it is not waited for."""

    def __init__(self, x: Tensor) -> None:
        self._x = x.to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream().record_event() if x.is_cuda else None

    def tolist(self) -> list[float]:
        """Return its values, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        values: list[float] = self._x.tolist()
        return values


def beside_the_steps(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield `batches`, on a GPU made on a stream of their own while the last step still computes.

    The step that takes a batch waits for it on the device, not on the host.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    while True:
        with torch.cuda.stream(stream):
            batch = next(batches, None)
        if batch is None:
            return
        if stream is not None:
            steps = torch.cuda.current_stream(device)
            steps.wait_stream(stream)
            batch.record_stream(steps)
        yield batch
