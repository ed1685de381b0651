"""The step of a rank over gloo, and what needs a GPU."""

from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check.ranks import free_port, nccl_beside_gloo, step_of_rank
from benchmarks.gpu_check.timing import ON_GPU


def test_a_port_is_free_and_nccl_needs_a_gpu() -> None:
    assert 1024 < int(free_port()) < 65536
    assert ON_GPU or nccl_beside_gloo() == {"skipped": "needs CUDA"}


def test_a_rank_takes_a_step_and_leaves_its_gradients(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # set anew by the step, and given back after the test
    threads = torch.get_num_threads()
    try:
        step_of_rank(0, 1, free_port(), digits)
    finally:
        torch.set_num_threads(threads)
    grads = torch.load(digits / "grads.pth", weights_only=True)
    assert grads.isfinite().all() and grads.norm() > 0
    assert not torch.distributed.is_initialized()
