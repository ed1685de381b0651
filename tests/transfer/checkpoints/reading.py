"""Checkpoints written and read back by the tests, and equal state dicts."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transfer.checkpoints.read import read_backbone

State = dict[str, Tensor]


def read(content: object, path: Path, encoder: str | None = None) -> Any:
    torch.save(content, path)
    return read_backbone(path, encoder=encoder)


def same(got: State, wanted: State) -> bool:
    return got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in wanted)
