"""The child process in which a peer's code is imported, with stand-ins for what it needs.

Stand-ins: `wandb` (logs nothing), `tqdm` where it is missing (no bars), `.cuda()` of tensors and
modules (does nothing: both sides are compared on the CPU).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def main(function: str, folder: str, given: str, returned: str) -> None:
    """Call `function` (`module:name`) with the content of `given`, and write what it returns."""
    sys.path.insert(0, folder)
    stand_in()
    module, name = function.split(":")
    inputs = torch.load(Path(given), weights_only=True)
    torch.save(getattr(importlib.import_module(module), name)(inputs), Path(returned))


def stand_in() -> None:
    """Put the stand-ins in place."""
    wandb: Any = ModuleType("wandb")
    wandb.init = wandb.log = lambda *_, **__: None
    sys.modules["wandb"] = wandb
    if importlib.util.find_spec("tqdm") is None:
        tqdm: Any = ModuleType("tqdm")
        tqdm.tqdm, tqdm.trange = (lambda items, **_: items), (lambda count, **_: range(count))
        sys.modules["tqdm"] = tqdm
    for kind in (Tensor, nn.Module):
        setattr(kind, "cuda", lambda self, *_, **__: self)  # noqa: B010  (mypy: a method)


@contextmanager
def recorded_permutations() -> Iterator[list[Tensor]]:
    """Yield the list of all that `torch.randperm` draws meanwhile."""
    original, drawn = torch.randperm, list[Tensor]()

    def draw(*arguments: Any, **named: Any) -> Tensor:
        drawn.append(original(*arguments, **named))
        return drawn[-1]

    torch.randperm = draw
    try:
        yield drawn
    finally:
        torch.randperm = original


if __name__ == "__main__":
    main(*sys.argv[1:])
