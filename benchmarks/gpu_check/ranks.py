"""Several processes: two ranks against one, and nccl with its gloo group beside it."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from benchmarks.gpu_check.commands import json_lines
from benchmarks.gpu_check.machine import nccl_version
from benchmarks.gpu_check.numerics import CPU, relative
from benchmarks.gpu_check.timing import ON_GPU
from benchmarks.gpu_check.training import digits_config
from pretrain.runtime.distributed import Processes
from pretrain.training import Trainer, precision
from pretrain.training.metrics import METRICS


def two_processes() -> dict[str, Any]:
    """Two ranks (gloo, one GPU, SyncBatchNorm) have the loss and gradients of one."""
    losses, grads = {}, {}
    for size in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            spawn(step_of_rank, (size, free_port(), Path(folder)), nprocs=size)  # type: ignore[no-untyped-call]
            losses[size] = json_lines(Path(folder) / METRICS)[0]["loss"]
            grads[size] = torch.load(Path(folder) / "grads.pth")
    row = {
        "loss of one": losses[1],
        "loss of two": losses[2],
        "gradients differ by": relative(grads[2], grads[1]),
    }
    if ON_GPU:  # without SyncBatchNorm the two are different problems
        assert abs(losses[1] - losses[2]) < 1e-2 and row["gradients differ by"] < 0.1, row
    return row


def step_of_rank(rank: int, size: int, port: str, folder: Path) -> None:
    """Take a step as one of `size` ranks; the first leaves the gradients in `folder`."""
    torch.set_num_threads(1)
    device = torch.device("cuda", 0) if ON_GPU else CPU
    join("gloo", rank, size, port)  # nccl refuses two ranks on one GPU
    config = digits_config(
        {
            "method": "w-mse",
            "model": {"embedding_dim": 16},
            "loss": {"name": "w-mse", "sub_batch": 64},  # of the gathered global batch
            "compute": {"sync_batchnorm": ON_GPU},
            "max_steps": 1,
        }
    )
    trainer = Trainer(config, folder, Processes(device, control_group()))
    trainer.train()
    grads = [p.grad.flatten().cpu() for p in trainer.model.parameters() if p.grad is not None]
    if rank == 0:
        torch.save(torch.cat(grads), folder / "grads.pth")
    dist.destroy_process_group()


def nccl_beside_gloo() -> dict[str, Any]:
    """Nccl for one rank with a gloo group beside it, as a run of several ranks has, and DDP."""
    if not ON_GPU:
        return {"skipped": "needs CUDA"}
    with tempfile.TemporaryDirectory() as folder:
        done = Path(folder) / "done"
        spawn(nccl_rank, (free_port(), done), nprocs=1)  # type: ignore[no-untyped-call]
        assert done.exists()
    return {"nccl": nccl_version()}


def nccl_rank(rank: int, port: str, done: Path) -> None:
    """Use both groups, SyncBatchNorm and DDP, then write `done`."""
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    join("nccl", rank, 1, port, device)
    processes = Processes(device, control_group())
    assert processes.all_gather([1.0, 2.0]) == [[1.0, 2.0]] and processes.broadcast("a") == "a"
    assert processes.gather({"b": torch.ones(2)})[0]["b"].device.type == "cpu"
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(plain).to(device)  # type: ignore[no-untyped-call]
    wrapped = nn.parallel.DistributedDataParallel(model, device_ids=[0])
    images = torch.randn(2, 3, 8, 8, device=device)
    with precision.without_averaging(wrapped):
        wrapped(images).sum().backward()
    wrapped(images).sum().backward()
    part = torch.ones(2, device=device)
    dist.all_gather([torch.empty_like(part)], part)
    dist.broadcast(part, src=0)
    dist.destroy_process_group()
    done.touch()


def join(backend: str, rank: int, size: int, port: str, device: torch.device | None = None) -> None:
    """Join the process group of `size` ranks on this machine."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
    }
    dist.init_process_group(backend, device_id=device, rank=rank, world_size=size)


def control_group() -> dist.ProcessGroup:
    """Return the group for small things between CPUs."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def free_port() -> str:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
