"""Rate and optimiser belong together: a config names its optimiser, and a task that takes another
one gives its rate.
"""

from __future__ import annotations

from typing import Any

import pytest

from transfer.config.finetune import FinetuneConfig, optimizer_fault

ADAMW = {"SOLVER": {"OPTIMIZER": "adamw", "BASE_LR": 0.0003}}
SGD = {"SOLVER": {"BASE_LR": 0.02}}


@pytest.mark.parametrize(
    ("config", "given", "optimizer"),
    [
        (ADAMW, {}, "adamw"),
        (ADAMW, {"optimizer": None}, "adamw"),
        (ADAMW, {"optimizer": "sgd"}, "sgd"),
        ({"SOLVER": {"OPTIMIZER": "ADAMW"}}, {}, "adamw"),
        (SGD, {}, "sgd"),
        ({}, {"optimizer": "adamw"}, "adamw"),
    ],
)
def test_the_optimizer_is_the_configs_unless_given(
    config: dict[str, Any], given: dict[str, Any], optimizer: str
) -> None:
    made = FinetuneConfig.model_validate({"detectron2": config, "datasets": {}} | given)
    assert made.optimizer == optimizer


def test_an_unknown_optimizer_is_refused() -> None:
    content = {"detectron2": {"SOLVER": {"OPTIMIZER": "lion"}}, "datasets": {}}
    with pytest.raises(ValueError, match="'sgd' or 'adamw'"):
        FinetuneConfig.model_validate(content)


@pytest.mark.parametrize(
    ("recipe", "optimizer", "overrides", "fault"),
    [
        (ADAMW, None, [], None),
        (ADAMW, "adamw", [], None),
        (SGD, "sgd", ["SOLVER.BASE_LR=0.1"], None),
        (SGD, "adamw", [], "SOLVER.BASE_LR is sgd's and the optimizer adamw; give adamw's rate"),
        (ADAMW, "sgd", ["SOLVER.MAX_ITER=3"], "SOLVER.BASE_LR is adamw's and the optimizer sgd"),
        (ADAMW, "sgd", ["SOLVER.BASE_LR=0.02"], None),
        (SGD, "adamw", ["SOLVER={BASE_LR: 0.0003}"], None),
    ],
)
def test_another_optimizer_wants_its_rate(
    recipe: dict[str, Any], optimizer: str | None, overrides: list[str], fault: str | None
) -> None:
    answer = optimizer_fault(recipe, recipe, optimizer, overrides)
    assert (answer is None) if fault is None else fault in str(answer)


def test_an_override_of_the_optimizer_wants_its_rate_too_and_names_it_once() -> None:
    overrides = ["SOLVER.OPTIMIZER=adamw"]
    assert "give adamw's rate" in str(optimizer_fault(SGD, ADAMW, None, overrides))
    assert optimizer_fault(SGD, ADAMW, None, [*overrides, "SOLVER.BASE_LR=0.0003"]) is None
    assert "give one" in str(optimizer_fault(SGD, ADAMW, "sgd", overrides))
