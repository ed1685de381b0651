"""The GPUs of one machine, which stages that run at a time share out among them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config.schema import ResourcesConfig
from pipeline.stages.provenance import VISIBLE_GPUS, with_this_code
from pipeline.stages.stage import Stage

ON_GPUS = ("pretrain", "probe", "finetune")
# of Linux, of a container that hides /proc, and of Linux in Windows
DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
COUNT = "import torch; print(torch.cuda.device_count())"


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the GPUs that torch sees here, under the names that CUDA_VISIBLE_DEVICES takes.

    Where the variable is set they are the first that it names; torch counts them, in a process of
    its own, which is not started where there is no driver.
    """
    if not any(path.exists() for path in DRIVERS):
        return ()
    command = [sys.executable, "-c", COUNT]
    child_environment = with_this_code(environment)
    child = subprocess.run(
        command, capture_output=True, text=True, env=child_environment, check=False
    )
    words = child.stdout.split()
    num_gpus = int(words[-1]) if child.returncode == 0 and words else 0
    named = environment.get(VISIBLE_GPUS)
    names = named.split(",") if named else [str(number) for number in range(num_gpus)]
    return tuple(name.strip() for name in names[:num_gpus])


def gpus_of(stage: Stage, resources: ResourcesConfig) -> int:
    """Return how many GPUs a stage computes on: one, unless task or resources say otherwise.

    A probe takes one of those it is given; a fine-tuning those of its task, none with `gpus: 0`.
    """
    if stage.kind not in ON_GPUS:
        return 0
    asked = resources.of(stage.kind)
    given = asked.gpus if "gpus" in asked.model_fields_set else 1
    if stage.kind == "pretrain":
        return given
    of_task = int(stage.settings.get("num_gpus", 1))
    return of_task if of_task > 1 else min(given, 1)


class GpuPool:
    """GPUs by name, of which a stage takes some and gives them back when it is over."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.free = list(names)

    def take(self, number: int) -> tuple[str, ...] | None:
        """Return so many GPUs (all where there are fewer), or None while too few are free."""
        number = min(number, len(self.names))
        if number > len(self.free):
            return None
        taken, self.free = tuple(self.free[:number]), self.free[number:]
        return taken

    def give_back(self, taken: Sequence[str]) -> None:
        """Let others have these GPUs."""
        free = {*self.free, *taken}
        self.free = [name for name in self.names if name in free]
