"""Run a function once, or in one process per GPU on one or several machines.

An executor starts one process per machine, with RANK (which machine), WORLD_SIZE (how many),
MASTER_ADDR and MASTER_PORT in its environment; detectron2 starts one per GPU of a machine.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from transfer.detection.hooks import EXIT_INTERRUPTED, SIGNALS

RESULT = ".launched.json"
EXIT_FAULT = 2
logger = logging.getLogger(__name__)
Metrics = dict[str, float]


@dataclass(frozen=True)
class Machines:
    """GPUs on each machine, how many machines, which one this is, and where they meet."""

    num_gpus: int = 1
    num_nodes: int = 1
    node: int = 0
    url: str = "auto"

    @property
    def num_processes(self) -> int:
        """Return the number of processes on all machines."""
        return self.num_gpus * self.num_nodes


def machines_of(
    num_gpus: int, num_nodes: int, environment: Mapping[str, str] = os.environ
) -> Machines:
    """Return what an executor's environment says, which must agree with the settings.

    Raises:
        ValueError: the executor started another number of machines, or does not say where to meet.
    """
    started = int(environment.get("WORLD_SIZE", "1"))
    if started != num_nodes:
        raise ValueError(
            f"num_nodes is {num_nodes}, but WORLD_SIZE says that {started} processes were started; "
            "wanted one process on each node"
        )
    if num_nodes == 1:
        return Machines(num_gpus)
    absent = [key for key in ("RANK", "MASTER_ADDR", "MASTER_PORT") if key not in environment]
    if absent:
        raise ValueError(f"{num_nodes} nodes, but no {', '.join(absent)} in the environment")
    url = f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    return Machines(num_gpus, num_nodes, int(environment["RANK"]), url)


def run_on(
    machines: Machines, function: Callable[..., Metrics], args: tuple[Any, ...], folder: Path
) -> Metrics:
    """Return `function(*args)` of the first process; on the other machines nothing.

    A signal reaches every process, so that all save and leave with code 75 together.

    Raises:
        ValueError: as `function` did, or there are too few GPUs.
    """
    if machines.num_processes == 1:
        return function(*args)
    found = torch.cuda.device_count()
    if found < machines.num_gpus:
        raise ValueError(f"asked for {machines.num_gpus} GPUs, this machine has {found}")
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / RESULT
    if machines.node == 0:
        result.unlink(missing_ok=True)
    with signals_passed_on() as received:
        try:
            launch(
                in_one_process,
                machines.num_gpus,
                machines.num_nodes,
                machines.node,
                machines.url,
                args=(function, args, folder),
            )
        except ProcessExitedException as error:
            if received or error.exit_code == EXIT_INTERRUPTED:
                raise SystemExit(EXIT_INTERRUPTED) from None
            if error.exit_code == EXIT_FAULT and result.exists():
                raise ValueError(_taken(result)["fault"]) from None
            raise
    metrics: Metrics = _taken(result)["metrics"] if machines.node == 0 else {}
    return metrics


def in_one_process(function: Callable[..., Metrics], args: tuple[Any, ...], folder: Path) -> None:
    """Call `function` and leave in `folder` what the first process returned, or what any refused.

    Raises:
        SystemExit: with code 2, for a fault that a user can mend.
    """
    is_main = comm.is_main_process()
    logging.basicConfig(
        level=logging.INFO if is_main else logging.ERROR,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        answer = {"metrics": function(*args)}
    except ValueError as error:
        _write(folder / RESULT, {"fault": str(error)})
        raise SystemExit(EXIT_FAULT) from None
    if is_main:
        _write(folder / RESULT, answer)


@contextmanager
def signals_passed_on() -> Iterator[list[int]]:
    """Pass signals on to the child processes; the list holds those that came."""
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        for child in multiprocessing.active_children():
            child.terminate()

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)


def _taken(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return content
