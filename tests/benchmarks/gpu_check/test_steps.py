"""The cases of steps: valid configs all, and a row that has every part of a step."""

from pathlib import Path

import pytest

from benchmarks.gpu_check import steps
from benchmarks.gpu_check.steps import CASES, COMPILED_CASES, TINY_CASES, Case, step_row
from benchmarks.gpu_check.timing import recipe

ALL = (*CASES, *COMPILED_CASES, *TINY_CASES)


def test_every_case_is_a_valid_config(tiny: Path) -> None:
    assert len({case.title for case in ALL}) == len(ALL)
    for case in ALL:
        config = recipe(case.recipe, case.changes, max_steps=3)
        assert config.num_views == 4 and config.max_steps == 3, case.title


def test_a_row_has_the_step_and_its_parts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "ROUNDS", 1)
    monkeypatch.setattr(steps, "WARM_UP", 1)
    row = step_row(Case("small", "cifar"))
    assert row["images/s"] == pytest.approx(16e3 / row["ms"])
    assert row["views/s"] == pytest.approx(4 * row["images/s"])
    parts = ("gradients ms", "update ms", "loss alone ms", "indicators of a logged step ms")
    assert all(row[part] > 0 for part in parts) and row["loss share"].endswith("%")
