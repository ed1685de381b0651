"""Print how fast a part of the package is: `python tools/benchmark.py whitening`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain

from pretrain.benchmark import benchmark_whitening

BENCHMARKS = {
    "whitening": (benchmark_whitening, "whitening losses against a plain loop"),
}


def main() -> None:
    """Read the arguments and run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, (_, summary) in BENCHMARKS.items():
        command = commands.add_parser(name, help=summary)
        command.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
        command.add_argument(
            "--threads", type=int, nargs="+", default=[], help="CPU threads, a table for each"
        )
    arguments = vars(parser.parse_args())
    run, _ = BENCHMARKS[arguments.pop("name")]
    run(**arguments)


if __name__ == "__main__":
    main()
