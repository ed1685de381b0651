"""On a GPU: every comparison of the check with the CPU, one test each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_check import smoke

pytestmark = pytest.mark.filterwarnings("default")  # of libraries, which no CPU has raised


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("check", smoke.CHECKS, ids=lambda check: check.__name__)
def test_on_a_gpu(check: Callable[[], dict[str, Any]], digits: Path) -> None:
    assert check()


def test_the_checks_cover_what_runs_on_a_gpu() -> None:
    names = {check.__name__ for check in smoke.CHECKS}
    assert {
        *("losses", "trainer_variants", "loader", "colours", "precision_switches", "resume"),
        *("nearest_neighbours", "detector_on_device", "roi_align_types"),
    } <= names
