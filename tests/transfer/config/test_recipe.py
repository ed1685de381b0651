"""Keys and values of a task's recipe, without torch."""

from typing import Any

import pytest

from transfer.config.finetune import FinetuneConfig, defaults
from transfer.config.recipe import (
    CHOICES,
    LIMITS,
    ONLY,
    config_faults,
    type_faults,
    value_at,
    value_faults,
)

SETS = {"DATASETS": {"TRAIN": ["a"], "TEST": ["b"]}}


def faults(**content: Any) -> list[str]:
    config = FinetuneConfig.model_validate({"detectron2": SETS | content, "datasets": {}})
    return config_faults(config)


def test_detectron2s_defaults_have_no_fault() -> None:
    assert faults() == []


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"MAX_ITER": "many"}, "SOLVER.MAX_ITER is 'many', wanted a whole number, such as 40000"),
        ({"MAX_ITER": 4.5}, "SOLVER.MAX_ITER is 4.5, wanted a whole number, such as 40000"),
        ({"MAX_ITER": None}, "SOLVER.MAX_ITER is None, wanted a whole number, such as 40000"),
        ({"MAX_ITER": True}, "SOLVER.MAX_ITER is True, wanted a whole number, such as 40000"),
        ({"BASE_LR": 1}, "SOLVER.BASE_LR is 1, wanted a number with a decimal point, such as"),
        ({"NESTEROV": "perhaps"}, "SOLVER.NESTEROV is 'perhaps', wanted true or false, such as"),
        ({"STEPS": 3}, "SOLVER.STEPS is 3, wanted a list, such as [30000]"),
        ({"STEPS": ["a"]}, "SOLVER.STEPS is ['a'], wanted a list, such as [30000]"),
        ({"STEPS": [[3]]}, "SOLVER.STEPS is [[3]], wanted a list, such as [30000]"),
        ({"LR_SCHEDULER_NAME": 3}, "SOLVER.LR_SCHEDULER_NAME is 3, wanted text, such as"),
        ({"MAX_ITR": 3}, "SOLVER.MAX_ITR: detectron2 has no such key; did you mean SOLVER.MAX_IT"),
        ({"MAX_ITER": {"a": 1}}, "SOLVER.MAX_ITER"),
        ({"AMP": 1}, "SOLVER.AMP: got 1, wanted a section of keys"),
    ],
)
def test_a_value_of_another_type_is_told_with_one_that_fits(
    value: dict[str, Any], fault: str
) -> None:
    (line,) = faults(SOLVER=value)
    assert line.startswith(fault)


def test_what_detectron2_takes_is_taken() -> None:
    solver = {"BASE_LR": "1e-3", "STEPS": "(3, 4)", "MAX_ITER": "9", "BIAS_LR_FACTOR": 2.0}
    assert faults(SOLVER=solver) == []
    cfg = defaults().clone()
    assert list(type_faults({"SOLVER": solver}, cfg)) == []
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == (0.001, (3, 4), 9)


def test_all_faults_are_told_at_once() -> None:
    lines = faults(SOLVER={"MAX_ITER": "many", "STEPS": ["a"]}, MODEL={"MASK_ON": "perhaps"})
    assert [line.partition(" is ")[0] for line in lines] == [
        "SOLVER.MAX_ITER", "SOLVER.STEPS", "MODEL.MASK_ON",
    ]  # fmt: skip


def test_limits_and_what_is_offered_are_keys_of_detectron2() -> None:
    cfg = defaults().clone()
    cfg.DATASETS.TEST = ("b",)
    assert value_faults(cfg) == []
    assert all(value_at(cfg, key) is not None for key in [*LIMITS, *ONLY, *CHOICES])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"MODEL": {"DEVICE": "tpu"}}, "MODEL.DEVICE is 'tpu', wanted cuda or cpu"),
        ({"MODEL": {"PIXEL_STD": [1.0, 0.0, 1.0]}}, "MODEL.PIXEL_MEAN is [103.53"),
        ({"MODEL": {"META_ARCHITECTURE": "RetinaNet"}}, "MODEL.META_ARCHITECTURE is 'RetinaNet'"),
        ({"SOLVER": {"STEPS": [9, 3]}}, "SOLVER.STEPS is [9, 3], wanted iterations in rising"),
        ({"TEST": {"EXPECTED_RESULTS": [["bbox", "AP", 1.0, 0.2]]}}, "TEST.EXPECTED_RESULTS is"),
        ({"TEST": {"PRECISE_BN": {"NUM_ITER": -3}}}, "TEST.PRECISE_BN.NUM_ITER is -3, wanted 1"),
    ],
)
def test_what_no_run_can_have_is_refused(content: dict[str, Any], fault: str) -> None:
    (line,) = faults(**content)
    assert line.startswith(fault)
