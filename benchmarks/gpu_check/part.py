"""One part of the check in a process of its own: `python -m benchmarks.gpu_check.part NAME FILE`.

A part's module is imported when it runs, so that each process loads only what it needs.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu_check.results import Results

# name: (module, function)
PARTS = {
    "data": ("commands", "digits_data"),
    "env": ("machine", "environment"),
    "tests": ("commands", "numeric_tests"),
    "smoke": ("smoke", "run_checks"),
    "digits": ("commands", "digits"),
    "pipeline": ("commands", "pipeline"),
    "amp": ("commands", "fine_tuning"),
    "whitening": ("whitening", "whitening"),
    "step": ("steps", "steps"),
    "loader": ("loader", "loader"),
    "detection": ("detection", "detection"),
    "compile": ("steps", "compiled_steps"),
}


def part_function(name: str) -> Callable[[Results], None]:
    """Return the function of a part, which enters what it measures into its results."""
    module, function = PARTS[name]
    run: Callable[[Results], None] = getattr(
        importlib.import_module(f"benchmarks.gpu_check.{module}"), function
    )
    return run


def main(name: str, path: Path) -> int:
    """Run a part; return 1 if it fails, with the end of the traceback in its results."""
    results = Results(path)
    results.save()
    try:
        part_function(name)(results)
    except Exception:  # noqa: BLE001  (told in the results)
        traceback.print_exc()
        results["FAILED"] = traceback.format_exc()[-900:]
        return 1
    finally:
        results.save()
    return 1 if results.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
