"""The losses against the published loops, and S^(-1/2) by products against torch's factorisations.

B matrices, k variables.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import peak_mb
from benchmarks.gpu_check.results import TINY, Results
from benchmarks.gpu_check.timing import DEVICE, ON_GPU, milliseconds, profiled
from benchmarks.published_loops import plain_loss
from benchmarks.whitening import (
    WHITENING_CASES,
    Step,
    WhiteningCase,
    forward_backward,
    interleaved_ms,
)
from pretrain.losses import build_loss
from pretrain.runtime.cpu import on_one_core
from pretrain.whitening.newton_schulz import inverse_sqrt_by_matmul, lyapunov_by_matmul

# of 32 and just above: torch's eigh takes batches of larger matrices one by one on a GPU, for which
# PCA goes to the CPU (`LARGEST_EIGH_OF_CUDA`)
EIGH_SIZES = ((4, 32), (4, 40)) if TINY else ((16, 32), (64, 32), (16, 40), (64, 40))
SIZES = EIGH_SIZES if TINY else (*EIGH_SIZES, (8, 128), (16, 64), (32, 128), (64, 64), (8, 256))
CASES = WHITENING_CASES[2:3] if TINY else WHITENING_CASES


def whitening(results: Results) -> None:
    """Time losses, forward and backward, where their time goes, and S^(-1/2) in several ways."""
    results["losses, forward + backward"] = rows = {}
    for case in CASES:
        rows[case.title] = loss_row(case)
        results.save()
    results["where"] = {
        case.title: profiled(steps_of(case)["ours"], top=8) for case in CASES[:3] if ON_GPU
    }
    results.save()
    results["S^(-1/2), ms"] = table = {}
    for num_matrices, size in SIZES:
        table[f"[{num_matrices}, {size}, {size}]"] = inverse_root_row(num_matrices, size)
        results.save()


def steps_of(case: WhiteningCase) -> dict[str, Step]:
    """Return forward and backward of the published loop and of the project's loss."""
    x = case.embeddings(DEVICE).requires_grad_()
    return {
        "plain": partial(forward_backward, partial(plain_loss, config=case.config), x),
        "ours": partial(forward_backward, build_loss(case.config).to(DEVICE), x),
    }


def loss_row(case: WhiteningCase) -> dict[str, float]:
    """Return milliseconds of both, their ratio, and on a GPU what memory they need."""
    steps = steps_of(case)
    ms = interleaved_ms(steps, 2 if TINY else 10, DEVICE)
    row = {"plain ms": ms["plain"], "ours ms": ms["ours"], "ratio": ms["plain"] / ms["ours"]}
    if ON_GPU:
        row |= {f"{name} peak MB": peak_mb(step, DEVICE) for name, step in steps.items()}
    return row


def inverse_root_row(num_matrices: int, size: int) -> dict[str, Any]:
    """Return milliseconds of S^(-1/2) [B, k, k] and its derivative, and of torch's routes to it."""
    a = torch.randn(num_matrices, size, 4 * size, device=DEVICE)
    covariance: Tensor = a @ a.mT / (4 * size)
    tolerance = max(8.0, size**0.5) * torch.finfo(covariance.dtype).eps  # as the losses take it
    root, converged = inverse_sqrt_by_matmul(covariance, tolerance)
    assert bool(converged.all())
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "matmul": (partial(inverse_sqrt_by_matmul, covariance, tolerance), 10),
        "its derivative": (partial(lyapunov_by_matmul, root, covariance), 10),
        "eigh": (partial(torch.linalg.eigh, covariance), 5),
        "eigh by the CPU": (partial(eigh_by_cpu, covariance), 5),
        "svd": (partial(torch.linalg.svd, covariance), 3),
        "cholesky": (partial(torch.linalg.cholesky_ex, covariance), 10),
    }
    row: dict[str, Any] = {n: milliseconds(way, rounds, 2) for n, (way, rounds) in ways.items()}
    if ON_GPU:
        try:
            row["matmul and derivative as a CUDA graph"] = graph_ms(covariance, tolerance, root)
        except RuntimeError as error:
            row["graph"] = f"{type(error).__name__}: {error}"[:200]
    return row


def eigh_by_cpu(covariance: Tensor) -> tuple[Tensor, ...]:
    """Return eigenvalues and vectors as PCA gets them where a GPU is slow, copies included."""
    with on_one_core():
        return tuple(part.to(DEVICE) for part in torch.linalg.eigh(covariance.cpu()))


def graph_ms(covariance: Tensor, tolerance: float, root: Tensor) -> float:
    """Return milliseconds of both as one CUDA graph: what the launches cost is the difference."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inverse_sqrt_by_matmul(covariance, tolerance)
        lyapunov_by_matmul(root, covariance)
    return milliseconds(graph.replay, 10)
