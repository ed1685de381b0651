"""Print how fast a part of the package is: `python tools/benchmark.py whitening`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain

# name: module, function (its keyword arguments of type int become options), what it compares
BENCHMARKS = {
    "whitening": (
        "pretrain.benchmark",
        "benchmark_whitening",
        "whitening losses against a plain loop",
    ),
    "evaluation": (
        "transfer.benchmark_evaluation",
        "benchmark_evaluation",
        "COCO's AP by faster-coco-eval against pycocotools",
    ),
}


def main() -> None:
    """Read the arguments and run one benchmark; only its own module is imported."""
    listing = "\n".join(f"  {name:<14}{summary}" for name, (*_, summary) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"benchmarks:\n{listing}\n\nNAME --help lists the options of one",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS)
    name = parser.parse_args(sys.argv[1:2]).name
    module, function, summary = BENCHMARKS[name]
    run = getattr(importlib.import_module(module), function)
    command = argparse.ArgumentParser(prog=f"{parser.prog} {name}", description=summary)
    for key, parameter in inspect.signature(run).parameters.items():
        default = "torch's" if parameter.default is None else parameter.default
        command.add_argument(
            f"--{key.replace('_', '-')}",
            type=int,
            default=parameter.default,
            help=f"default: {default}",
        )
    run(**vars(command.parse_args(sys.argv[2:])))


if __name__ == "__main__":
    main()
