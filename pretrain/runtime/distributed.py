"""Several processes with one global batch; everything works without a process group too."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from pretrain.runtime.device import to_device

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run: its device, and how they agree on small things.

    What they agree on travels between the CPUs (gloo), in a group of its own beside nccl's.
    """

    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """Return this process's number."""
        return rank()

    @property
    def size(self) -> int:
        """Return how many there are."""
        return world_size()

    @property
    def is_main(self) -> bool:
        """Return whether this is process 0, which writes files and talks."""
        return self.rank == 0

    def all_gather(self, values: Sequence[float]) -> list[list[float]]:
        """Return the `values` of every rank, in rank order."""
        if self.control is None:
            return [list(values)]
        row = torch.tensor(values, dtype=torch.float64)
        rows = [torch.empty_like(row) for _ in range(self.size)]
        dist.all_gather(rows, row, group=self.control)
        return [row.tolist() for row in rows]

    def gather(self, entry: Any) -> list[Any]:
        """Return the `entry` of every rank, in rank order, on rank 0; elsewhere nothing."""
        if self.control is None:
            return [entry]
        entries: list[Any] = [None] * self.size if self.is_main else []
        dist.gather_object(entry, entries if self.is_main else None, group=self.control)
        return entries

    def broadcast(self, entry: Any) -> Any:
        """Return rank 0's `entry`."""
        if self.control is None:
            return entry
        entries = [entry]
        dist.broadcast_object_list(entries, group=self.control)
        return entries[0]

    def barrier(self) -> None:
        """Return when every rank has come here."""
        self.all_gather([0.0])


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that torchrun's variables name, or be alone without them.

    nccl between GPUs, gloo between CPUs. Sets no random seed.

    Raises:
        ValueError: some of the variables are missing, there are fewer GPUs than processes, or two
            processes would compute on one GPU, some of them on CPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {', '.join(missing)} not set; "
            "start with torchrun, or unset WORLD_SIZE for a single process"
        )
    device = _device(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    store, rank, size = next(rendezvous("env://"))
    is_gpu = device.type == "cuda"
    gpu = str(torch.cuda.get_device_properties(device).uuid) if is_gpu else ""
    if fault := devices_fault(store, rank, size, (platform.node(), gpu)):
        raise ValueError(fault)
    joined: dict[str, Any] = {"store": store, "rank": rank, "world_size": size}
    if is_gpu:
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device, **joined)
    else:
        dist.init_process_group("gloo", **joined)
    control = dist.new_group(backend="gloo")
    assert isinstance(control, dist.ProcessGroup)
    try:
        yield Processes(device, control)
    finally:
        dist.destroy_process_group()


def _device(local_rank: int, local_size: int) -> torch.device:
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus == 0:
        return torch.device("cpu")
    if num_gpus == 1:  # a scheduler that shows each process its own GPU
        return torch.device("cuda", 0)
    if num_gpus < local_size:
        raise ValueError(
            f"{local_size} processes on this machine but {num_gpus} GPUs to be seen; "
            f"start {num_gpus} processes per machine"
        )
    return torch.device("cuda", local_rank)


def devices_fault(store: Store, rank: int, size: int, place: tuple[str, str]) -> str | None:
    """Return why these processes cannot compute together; every rank has to call this.

    `place` is this process's host and the UUID of its GPU, empty on a CPU. All get the same words.
    """
    store.set(f"place/{rank}", json.dumps(place))
    places = [tuple(json.loads(store.get(f"place/{number}"))) for number in range(size)]
    store.set(f"read/{rank}", "")
    if rank == 0:  # whose end may be the store's
        store.wait([f"read/{number}" for number in range(size)])
    for host, gpu in dict.fromkeys(places):
        ranks = [str(number) for number, each in enumerate(places) if each == (host, gpu)]
        if gpu and len(ranks) > 1:
            num_gpus = len({each for each in places if each[0] == host})
            return (
                f"processes {', '.join(ranks)} on {host} see one GPU, and each needs one of its "
                f"own; start {num_gpus} process(es) there, or let each see another"
            )
    on_cpus = [str(number) for number, (_, gpu) in enumerate(places) if not gpu]
    if 0 < len(on_cpus) < size:
        return f"processes {', '.join(on_cpus)} of {size} see no GPU, the others do; show all one"
    return None


def is_distributed() -> bool:
    """Return whether a process group of more than one process is running."""
    return world_size() > 1


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """Parts of all ranks along `dim`; the backward keeps this rank's part, times the world size."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.size = dim, part.shape[dim]
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(world_size())]
        dist.all_gather(parts, part)
        return torch.cat(parts, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.narrow(ctx.dim, rank() * ctx.size, ctx.size) * world_size(), None


def all_gather_with_grad(part: Tensor, dim: int = 0) -> Tensor:
    """Return the parts of all ranks, which have equal shapes, joined along `dim` in rank order.

    Made for a loss that every rank computes on the whole and that has the same value on all of
    them. The gradient of this rank's part is the loss's gradient with respect to it, times the
    world size: DistributedDataParallel's mean over ranks then gives parameters the sum over all
    images, which is what one process holding the whole batch gets. No communication in the
    backward. Without a process group this is the identity.
    """
    return _Gather.apply(part, dim) if is_distributed() else part


def broadcast(tensor: Tensor, device: torch.device) -> Tensor:
    """Return rank 0's `tensor` on `device`, the same on every rank."""
    tensor = to_device(tensor, device)
    if is_distributed():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor
