"""The step's benchmark: every part counted, and cases that are valid."""

import dataclasses

import pytest
import torch

from benchmarks.loader import LOADER_CASES
from benchmarks.step import CPU_CASES, GPU_CASES, PARTS, step_config, step_ms

TINY = dataclasses.replace(LOADER_CASES[0], image_size=(60, 45), num_images=6, num_views=2)


def test_a_step_is_the_sum_of_its_parts() -> None:
    images = dataclasses.replace(TINY, augment={"size": 32, "colours": "on_device"})
    config = {
        "arch": "resnet18", "embedding_dim": 4, "loss": {"name": "w-mse", "sub_batch": 8},
    }  # fmt: skip
    case = dataclasses.replace(CPU_CASES[0], images=images, batch=8, config=config)
    ms = step_ms(case, rounds=1, workers=0, device=torch.device("cpu"))
    assert tuple(ms) == PARTS
    assert all(value > 0 for value in ms.values())
    assert ms["encoder"] > ms["projector"]


@pytest.mark.parametrize("case", [*CPU_CASES, *GPU_CASES], ids=lambda case: case.title)
def test_step_cases_are_valid(case, tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert step_config(case, 0, tmp_path).batch_size == case.batch
