"""Timings of the whitening losses against the published loops; `tools/benchmark.py` prints them.

Legend: V views, N batch, D embedding dimension, G groups, n sub-batch.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.published_loops import plain_loss
from pretrain.config.loss import LossConfig
from pretrain.losses import build_loss

Step = Callable[[], None]


@dataclass(frozen=True)
class WhiteningCase:
    """One loss at one size."""

    title: str
    config: LossConfig
    batch: int
    views: int
    dim: int

    def embeddings(self, device: torch.device) -> Tensor:
        """Return correlated embeddings [V, N, D] of images seen in several views."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, self.dim, generator=generator)
        noise = torch.randn(self.views, self.batch, self.dim, generator=generator)
        mix = torch.randn(self.dim, self.dim, generator=generator) / self.dim**0.5
        embeddings: Tensor = (images + 0.5 * noise) @ mix
        return embeddings.to(device)


WHITENING_CASES = (
    WhiteningCase(
        "CW-RGP 256 x 4 x 512, 4 groups, sub-batch 64",
        LossConfig(name="cw-rgp", sub_batch=64, groups=4),
        batch=256,
        views=4,
        dim=512,
    ),
    WhiteningCase(
        "CW-RGP 128 x 4 x 1024, 2 groups, sub-batch 128",
        LossConfig(name="cw-rgp", sub_batch=128, groups=2),
        batch=128,
        views=4,
        dim=1024,
    ),
    WhiteningCase(
        "W-MSE 256 x 4 x 64, sub-batch 128",
        LossConfig(name="w-mse", sub_batch=128),
        batch=256,
        views=4,
        dim=64,
    ),
    WhiteningCase(
        "W-MSE 512 x 2 x 128, sub-batch 256",
        LossConfig(name="w-mse", sub_batch=256),
        batch=512,
        views=2,
        dim=128,
    ),
)


def interleaved_ms(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median milliseconds of each step, timed in turns so that load hits all alike.

    Every timed step follows an untimed one of its own: the step before leaves its data in the
    caches, and its helper threads wait actively for milliseconds, which another's would pay for.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            step()
            _wait_for(device)
            begin = time.perf_counter()
            step()
            _wait_for(device)
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb(step: Step, device: torch.device) -> float:
    """Return by how much `step` raises memory at its highest, in MB (on a CPU: resident memory)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    return _allocated_peak_mb(step)


def _allocated_peak_mb(step: Step) -> float:
    """Return the highest sum of CPU tensors alive at once during `step`, from the profiler.

    It sees what the calling thread allocates, so the step runs on one thread. There is one cycle:
    `acc_events` only keeps some releases of torch from warning of a next one.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            _silent_stderr(),
            torch.profiler.profile(
                activities=activities, profile_memory=True, acc_events=True
            ) as profile,
        ):
            step()
    finally:
        torch.set_num_threads(num_threads)
    current = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            highest = max(highest, current)
    return highest / 1e6


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what libraries write to the standard error stream: the profiler is talkative."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def benchmark_whitening(*, rounds: int = 15, threads: Sequence[int] = ()) -> None:
    """Print forward and backward of every case against the plain loop.

    One table for each number of CPU `threads` (torch's own unless given) and one for a GPU. Also
    prints the load, as the numbers mean little on a busy machine.
    """
    before = torch.get_num_threads()
    try:
        for number in threads or (before,):
            torch.set_num_threads(number)
            Console().print(_whitening_table(torch.device("cpu"), platform.machine(), rounds))
    finally:
        torch.set_num_threads(before)
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        Console().print(_whitening_table(torch.device("cuda"), name, rounds))


def _whitening_table(device: torch.device, name: str, rounds: int) -> Table:
    table = Table(
        title=f"Whitening losses, forward + backward, float32, {name}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    for column in ("case", "plain ms", "ours ms", "ratio", "plain peak MB", "ours peak MB"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case in WHITENING_CASES:
        x = case.embeddings(device).requires_grad_()
        steps: dict[str, Step] = {
            "plain": partial(forward_backward, partial(plain_loss, config=case.config), x),
            "ours": partial(forward_backward, build_loss(case.config), x),
        }
        ms = interleaved_ms(steps, rounds, device)
        peaks = {key: peak_mb(step, device) for key, step in steps.items()}
        table.add_row(
            case.title,
            f"{ms['plain']:.1f}",
            f"{ms['ours']:.1f}",
            f"{ms['plain'] / ms['ours']:.1f}x",
            f"{peaks['plain']:.1f}",
            f"{peaks['ours']:.1f}",
        )
    return table


def forward_backward(loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Leave the loss's gradient in `x`."""
    x.grad = None
    torch.autograd.backward(loss(x))
