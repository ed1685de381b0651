"""Every piece of the code on CUDA against the same on the CPU; each check tells what differs.

A check returns numbers, and fails by an exception. In a dry run both sides are the CPU.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import detection, numerics, ranks, training
from benchmarks.gpu_check.results import Results

CHECKS: tuple[Callable[[], dict[str, Any]], ...] = (
    numerics.losses,
    numerics.degenerate,
    numerics.precision_switches,
    numerics.colours,
    numerics.roi_align_types,
    numerics.nearest_neighbours,
    numerics.encoder,
    detection.detector_on_device,
    training.loader,
    training.trainer_variants,
    training.host_reads,
    training.resume,
    ranks.nccl_beside_gloo,
    ranks.two_processes,
)


def run_checks(results: Results) -> None:
    """Run all checks; what fails is named in `failed`, and the others run on."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "4")))
    results["failed"] = []
    for check in CHECKS:
        begin = time.perf_counter()
        try:
            entry = check()
        except Exception as error:  # noqa: BLE001  (told in the results)
            traceback.print_exc()
            frames = traceback.extract_tb(error.__traceback__)[-6:]
            entry = {
                "FAILED": f"{type(error).__name__}: {str(error)[:600]}",
                "at": " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames)),
            }
            results["failed"].append(check.__name__)
        results[check.__name__] = entry
        print(f"{check.__name__} {time.perf_counter() - begin:.1f} s: {entry}", flush=True)
        results.save()
