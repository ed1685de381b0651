"""Copies between a CPU and a GPU for which neither waits, and work beside that of the steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Views = Tensor | tuple[Tensor, ...]
"""A batch, view after view: `[V, N, 3, S, S]`, or where sizes differ `[N, 3, S, S]` for each."""


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` on `device`; a copy from pinned memory is queued, and nothing waits for it."""
    if device.type != "cuda" or x.device.type == "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def views_to_device(views: Views | list[Tensor], device: torch.device) -> Views:
    """Return `views` on `device`; copies from pinned memory are queued, and nothing waits."""
    if isinstance(views, Tensor):
        return views.to(device, non_blocking=True)
    return tuple(view.to(device, non_blocking=True) for view in views)


def image_parts(views: Views, number: int) -> list[Views]:
    """Return `views` of a part of the images each, of up to `number` parts."""
    if isinstance(views, Tensor):
        return list(views.chunk(number, dim=1))
    return list(zip(*(view.chunk(number) for view in views), strict=True))


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


def beside_the_steps(batches: Iterator[Views], device: torch.device) -> Iterator[Views]:
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
            for views in (batch,) if isinstance(batch, Tensor) else batch:
                views.record_stream(steps)
        yield batch
