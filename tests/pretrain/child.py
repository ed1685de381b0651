"""A training run of a small network as a process of its own, which signals itself where told to.

Run with a global JOB or with the job as JSON in the first argument: paths `config` and
`output_dir`, `env`, and `strike`, a list of [rank, place, count, signal]: within the count-th call
of place.
"""

import json
import logging
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from pretrain import train
from pretrain.config.pretrain import PretrainConfig
from pretrain.models import encoder
from pretrain.runtime import checkpoint
from pretrain.training import Trainer

PLACES: dict[str, tuple[Any, str]] = {
    "gradients": (Trainer, "gradients"),
    "update": (Trainer, "update"),
    "rename": (Path, "replace"),
}


def strike_at(place: str, wanted: int, number: signal.Signals) -> None:
    """Send this process a signal inside the call of `place` number `wanted`, from 1."""
    owner, name = PLACES[place]
    original: Callable[..., Any] = getattr(owner, name)
    count = [0]

    def wrapped(self: Any, *arguments: Any) -> Any:
        if place != "rename" or str(arguments[0]).endswith(checkpoint.LAST):
            count[0] += 1
            if count[0] == wanted:
                os.kill(os.getpid(), number)
        return original(self, *arguments)

    setattr(owner, name, wrapped)


def main(job: dict[str, Any]) -> None:
    os.environ.update(job.get("env", {}))
    torch.set_num_threads(1)
    small = runpy.run_path(str(Path(__file__).with_name("small_net.py")))
    encoder.build_encoder = small["build_encoder"]
    rank = int(os.environ.get("RANK", "0"))
    output_dir = Path(job["output_dir"])
    output_dir.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=output_dir / f"log{rank}.txt", level=logging.INFO, force=True)
    for who, place, count, name in job.get("strike", []):
        if who == rank:
            strike_at(place, count, signal.Signals[name])
    content = json.loads(Path(job["config"]).read_text(encoding="utf-8"))
    train.pretrain(PretrainConfig.model_validate(content), output_dir)


if __name__ == "__main__":
    main(globals()["JOB"] if "JOB" in globals() else json.loads(sys.argv[1]))
