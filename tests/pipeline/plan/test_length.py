"""Steps of a plan as they will be run."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.plan.length import length_lines, length_of
from pipeline.stages.stage import Stage
from tests.pipeline.local_runs import small_plan

SOLVER = {"MAX_ITER": 24_000, "IMS_PER_BATCH": 16, "REFERENCE_WORLD_SIZE": 8}


def stage(task: dict[str, Any], num_gpus: int = 1) -> Stage:
    settings = {"detectron2": task, "num_gpus": num_gpus, "num_nodes": 1}
    return Stage("finetune", "a--voc--seed0", {}, settings, Path(), task="voc")


@pytest.mark.parametrize(
    ("solver", "num_gpus", "iterations", "images"),
    [
        (SOLVER, 1, 192_000, 2),
        (SOLVER, 8, 24_000, 16),
        (SOLVER, 16, 12_000, 32),
        (SOLVER | {"MAX_ITER": 4}, 1, 32, 2),
        (SOLVER | {"REFERENCE_WORLD_SIZE": 0}, 1, 24_000, 16),
        ({}, 1, 40_000, 16),
    ],
)
def test_iterations_are_scaled_as_detectron2_scales_them(
    solver: dict[str, Any], num_gpus: int, iterations: int, images: int
) -> None:
    one = stage({"SOLVER": solver}, num_gpus)
    assert length_of(one) == f"{iterations:,} iterations"
    (line,) = length_lines([one, one])
    assert line.startswith(f"task voc: {iterations:,} iterations of {images} images")
    scaled = num_gpus != 8 and solver.get("REFERENCE_WORLD_SIZE", 0) != 0
    assert ("is for 8 (SOLVER.REFERENCE_WORLD_SIZE)" in line) == scaled


def test_precise_norms_are_told() -> None:
    task = {"SOLVER": SOLVER, "TEST": {"PRECISE_BN": {"ENABLED": True}}}
    (line,) = length_lines([stage(task, 8)])
    assert line.endswith("16 images; before each evaluation 200 batches of precise BatchNorm")


def test_a_pretraining_says_its_steps(fakes: Path) -> None:
    lines = length_lines(small_plan().stages)
    told = [line for line in lines if line.startswith("backbone a: ")]
    assert len(told) == 1 and told[0].endswith(" images a step"), lines
    assert len(lines) == len(set(lines))
