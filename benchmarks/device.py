"""The device of a benchmark: its name, a wait for it, and the memory that a step takes there."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def best_device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the kind of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def wait_for(device: torch.device) -> None:
    """Wait until everything begun on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tensors_mb(model: nn.Module, optimizer: Optimizer) -> float:
    """Return the MB of weights, buffers, gradients and the optimiser's state."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors) / 1e6


def peak_mb(step: Callable[[], object], device: torch.device) -> float:
    """Return by how much `step` raises memory at its highest, in MB (on a CPU: resident memory)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    return _allocated_peak_mb(step)


def _allocated_peak_mb(step: Callable[[], object]) -> float:
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
