"""Train on digits with each whitening method, print and plot how many dimensions survive."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import need_packages

need_packages()

from pretrain.config.loss import Method


def main() -> None:
    """Run every method with a few seeds, print the last indicators, write the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python tools/collapse.py --seeds 1 --output zca.png"
    )
    parser.add_argument("--output", type=Path, default=Path("collapse.png"), help="plot to write")
    parser.add_argument(
        "--methods", nargs="+", choices=get_args(Method), default=["zca", "cholesky", "pca"]
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs per method (default 3)")
    arguments = parser.parse_args()
    if not arguments.output.parent.is_dir():
        parser.error(f"--output: {arguments.output.parent}: no such folder")
    from examples.collapse import follow_training, plot_collapse  # noqa: PLC0415  (imports torch)

    curves = {
        method: [follow_training(method, seed=seed) for seed in range(arguments.seeds)]
        for method in arguments.methods
    }
    print("method    seed  loss  effective rank: embedding  encoding  stable rank: embedding")
    for method, runs in curves.items():
        for seed, run in enumerate(runs):
            last = run[-1]
            print(
                f"{method:9} {seed:4}  {last['loss']:4.2f}"
                f"  {last['embedding/effective_rank']:25.1f}"
                f"  {last['encoding/effective_rank']:8.1f}"
                f"  {last['embedding/stable_rank']:22.1f}"
            )
    plot_collapse(curves, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
