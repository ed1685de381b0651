"""Training runs for tests: what they leave in their folder, and how one is cut short."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.runtime.checkpoint import LAST
from pretrain.training.metrics import METRICS
from pretrain.training.trainer import Output, Trainer


def weights(folder: Path) -> dict[str, Tensor]:
    state = torch.load(folder / LAST, weights_only=True)["model"]
    assert isinstance(state, dict)
    return state


def logged(folder: Path) -> list[dict[str, float]]:
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int, action: Callable[[], None]) -> None:
    """Do `action` inside step `steps + 1`, that is after `steps` whole steps."""
    original, count = Trainer.gradients, [0]

    def gradients(self: Trainer, parallel: nn.Module, views: Tensor) -> Output:
        count[0] += 1
        if count[0] == steps + 1:
            action()
        return original(self, parallel, views)

    monkeypatch.setattr(Trainer, "gradients", gradients)


def crash() -> None:
    raise RuntimeError("power cut")
