"""The trainer's variants, and a run that is resumed, on the CPU."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from benchmarks.gpu_check import training
from benchmarks.gpu_check.timing import ON_GPU, Settings
from benchmarks.gpu_check.training import (
    DIGITS,
    LEFT_OUT,
    VARIANTS,
    digits_config,
    resume,
    trained,
)
from pretrain.training import Trainer


@pytest.mark.parametrize("title", VARIANTS)
def test_every_variant_is_a_valid_config(title: str) -> None:
    config = digits_config(VARIANTS[title])
    assert config.log_every == 1 and config.num_views == 2


def test_a_cpu_leaves_out_what_it_refuses_or_emulates() -> None:
    assert {"fp16", "bf16", "tf32"} <= LEFT_OUT or ON_GPU


RUNS: dict[str, tuple[list[float], Tensor]] = {}


def trained_once(changes: Settings, folder: Path) -> tuple[list[float], Tensor]:
    """Train, but take a run in one go from the test before: it writes the same each time."""
    if folder.name == "stopped":
        return trained(changes, folder)
    if folder.name not in RUNS:
        RUNS[folder.name] = trained(changes, folder)
    return RUNS[folder.name]


@pytest.fixture
def small(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the runs on the digits small and few."""
    monkeypatch.setattr(training, "trained", trained_once)
    model = {"arch": "resnet18", "projector_hidden": 16, "embedding_dim": 32}
    monkeypatch.setitem(DIGITS, "model", model)
    monkeypatch.setitem(DIGITS, "batch_size", 8)
    monkeypatch.setitem(DIGITS, "loss", {"name": "cw-rgp", "sub_batch": 8, "groups": 2})


@pytest.mark.usefixtures("small")
def test_a_resumed_run_ends_like_one_in_one_go() -> None:
    row = resume()
    assert len(row["logged"]) == 4
    if not ON_GPU:
        assert row["resumed differs by"] == row["two whole runs differ by"] == 0


@pytest.mark.usefixtures("small")
def test_a_run_that_lost_the_optimisers_state_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.load_state_dict

    def forgetful(self: Trainer, state: dict[str, Any]) -> None:
        original(self, state)
        self.optimizer.state.clear()

    monkeypatch.setattr(Trainer, "load_state_dict", forgetful)
    with pytest.raises(AssertionError):
        resume()
