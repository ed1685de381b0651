"""The packages that the check imports, and those of them that this Python lacks.

Needs nothing but Python's own library: `python benchmarks/gpu_check/needs.py`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable

# in .whl, as prepare.sh gathers it
WHEELS = (
    "pydantic", "omegaconf", "yacs", "pycocotools", "faster_coco_eval", "submitit", "termcolor",
    "iopath", "fvcore.nn", "detectron2.engine",
)  # fmt: skip
# to be on the machine
MACHINE = (
    "torch", "torchvision", "numpy", "PIL", "yaml", "rich", "jinja2", "matplotlib",
    "torch.utils.tensorboard", "sklearn", "scipy", "safetensors", "tabulate", "cloudpickle",
    "pytest", "pytest_timeout", "xdist",
)  # fmt: skip


def faults(modules: Iterable[str]) -> list[str]:
    """Return the modules that cannot be imported, with the reason where it is not their absence."""
    told = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001  (told, whatever it is)
            absent = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
            told.append(module if absent else f"{module} ({' '.join(str(error).split())[:200]})")
    return told


if __name__ == "__main__":
    if lacking := faults((*MACHINE, *WHEELS)):
        sys.exit(
            f"gpu-check: {sys.executable} lacks {', '.join(lacking)}; run make env here, or see "
            "docs/gpu-check.md for a machine without network"
        )
