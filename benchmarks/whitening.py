"""Timings of the whitening losses against the published loops; `tools/benchmark.py` prints them.

Legend: V views, N batch, D embedding dimension, G groups, n sub-batch.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import device_name, peak_mb, wait_for
from benchmarks.published_loops import plain_loss
from benchmarks.rows import Table, print_rows
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
            wait_for(device)
            begin = time.perf_counter()
            step()
            wait_for(device)
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def benchmark_whitening(
    *, rounds: int = 15, threads: Sequence[int] = (), device: str | None = None
) -> list[Table]:
    """Print forward and backward of every case against the plain loop.

    One table for each number of CPU `threads` (torch's own unless given) and one for a GPU, or
    those of one `device`. Also prints the load, as the numbers mean little on a busy machine.

    Raises:
        ValueError: there is no such device, or `threads` are of one that is left out.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; leave it out")
    if device == "cuda" and threads:
        raise ValueError("--threads are the CPU's, which --device cuda leaves out; give one")
    before, tables = torch.get_num_threads(), []
    try:
        for number in (threads or (before,)) if device != "cuda" else ():
            torch.set_num_threads(number)
            tables.append(_whitening_table(torch.device("cpu"), rounds))
    finally:
        torch.set_num_threads(before)
    if device != "cpu" and torch.cuda.is_available():
        tables.append(_whitening_table(torch.device("cuda"), rounds))
    return tables


def _whitening_table(device: torch.device, rounds: int) -> Table:
    name, threads = device_name(device), torch.get_num_threads()
    columns = ("case", "plain ms:.1f", "ours ms:.1f", "ratio:.1f", "plain peak MB:.1f",
               "ours peak MB:.1f")  # fmt: skip
    return print_rows(
        f"Whitening losses, forward + backward, float32, {name}, {threads} threads, "
        f"load {os.getloadavg()[0]:.1f}",
        columns,
        _whitening_rows(device, rounds),
        device=name,
        threads=threads,
    )


def _whitening_rows(device: torch.device, rounds: int) -> Iterator[tuple[Any, ...]]:
    for case in WHITENING_CASES:
        x = case.embeddings(device).requires_grad_()
        steps: dict[str, Step] = {
            "plain": partial(forward_backward, partial(plain_loss, config=case.config), x),
            "ours": partial(forward_backward, build_loss(case.config), x),
        }
        ms = interleaved_ms(steps, rounds, device)
        peaks = {key: peak_mb(step, device) for key, step in steps.items()}
        yield case.title, *ms.values(), ms["plain"] / ms["ours"], *peaks.values()


def forward_backward(loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Leave the loss's gradient in `x`."""
    x.grad = None
    torch.autograd.backward(loss(x))
