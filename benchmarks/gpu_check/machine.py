"""The machine, the versions on it, and whether every module of the project can be imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from contextlib import suppress
from typing import Any

import torch

from benchmarks.gpu_check.commands import command
from benchmarks.gpu_check.results import ROOT, Results

DISTRIBUTIONS = ("torch", "torchvision", "triton", "numpy", "pillow", "pydantic", "scipy",
                 "scikit-learn", "matplotlib", "detectron2", "pytest", "tensorboard",
                 "rich")  # fmt: skip
QUERY = (
    "name,driver_version,clocks.sm,clocks.max.sm,memory.total,"
    "pcie.link.gen.current,pcie.link.width.current,power.limit"
)


def environment(results: Results) -> None:
    """Enter what the machine is and has, which modules fail there, and what the doctor says."""
    results["python"], results["cores"] = platform.python_version(), len(os.sched_getaffinity(0))
    with suppress(FileNotFoundError):
        results["shm GB"] = round(shutil.disk_usage("/dev/shm").total / 1e9, 1)
    results["versions"] = versions()
    if torch.cuda.is_available():
        results["gpu"] = gpu()
        results["nvidia-smi"] = nvidia_smi()
        results["host to device GB/s"] = copied_gb_per_s()
    results.save()
    results["modules that fail"] = broken = broken_modules()
    results.save()
    done = command("tools/doctor.py", "--json", limit=30)
    with suppress(ValueError):
        results["doctor"] = [row for row in json.loads(done.out) if row["status"] != "ok"]
    results["failed"] = sorted(broken)


def versions() -> dict[str, str]:
    """Return the versions of what is installed."""
    there = {}
    for name in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            there[name] = importlib.metadata.version(name)
    return there


def gpu() -> dict[str, Any]:
    """Return what torch knows of the first GPU."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "GB": round(properties.total_memory / 1e9, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "nccl": nccl_version(),
    }


def nccl_version() -> str:
    """Return the version of nccl that torch was built with."""
    version: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, version))


def nvidia_smi() -> str:
    """Return driver, clocks, link and power limit, or why they are not known."""
    words = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stdout.strip()


def copied_gb_per_s() -> float:
    """Return how fast pinned memory is copied to the GPU."""
    here = torch.empty(2**26, dtype=torch.uint8).pin_memory()
    there = torch.empty_like(here, device="cuda")
    rounds, begin = 10, 0.0
    for number in range(rounds + 3):
        if number == 3:
            torch.cuda.synchronize()
            begin = time.perf_counter()
        there.copy_(here, non_blocking=True)
    torch.cuda.synchronize()
    return rounds * here.numel() / (time.perf_counter() - begin) / 1e9


def broken_modules() -> dict[str, str]:
    """Return the project's modules that cannot be imported, and why."""
    broken = {}
    for package in ("pretrain", "transfer", "pipeline"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            try:
                importlib.import_module(name)
            except (Exception, SystemExit) as error:  # noqa: BLE001  (told in the results)
                broken[name] = f"{type(error).__name__}: {error}"[:200]
    return broken
