"""The provenance of a result: commit, versions, hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.stages.files import read_json

CODE_STATE = "code_state.json"  # in a copy of the code: what the original was
PACKAGES = ("torch", "torchvision", "detectron2", "numpy", "pillow", "pycocotools", "fvcore")


@cache
def code_state() -> dict[str, Any]:
    """Return the commit of the code and whether it is `dirty`; None where unknown."""
    folder = Path(__file__).resolve().parents[2]
    if (folder / CODE_STATE).exists():
        state: dict[str, Any] = read_json(folder / CODE_STATE)
        return state
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def provenance() -> dict[str, Any]:
    """Return code state, package versions and hardware of this process."""
    torch = sys.modules.get("torch")  # the stage imported it if it needed it
    num_gpus = torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0
    return {
        "code": code_state(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "gpus": [torch.cuda.get_device_name(index) for index in range(num_gpus)] if torch else [],
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def version_of(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
