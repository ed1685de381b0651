"""Simulate a pipeline on a number of GPUs: jobs, GPU hours, wall time, price, what limits it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import add_config, need_packages, parsed

need_packages()

from pipeline.commands.simulate import read_rates, summary
from pipeline.plan.build import load_plan

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "pipeline"
EXAMPLE = """example:
  python tools/simulate.py --config-file configs/pipeline/full_comparison.yaml --gpus 8 64 512"""


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0, or 2 with one line for every fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser, "pipeline")
    parser.add_argument(
        "--rates",
        type=Path,
        default=CONFIGS / "rates_v100.yaml",
        help="speeds (YAML); configs/pipeline/ has rates_v100, rates_a100 and rates_h100",
    )
    parser.add_argument(
        "--gpus", type=int, nargs="+", default=[8, 64, 512], help="cluster sizes (default 8 64 512)"
    )
    parser.add_argument("--price-per-gpu-hour", type=float, help="adds what the GPU hours cost")
    options = parsed(parser, arguments)
    try:
        plan = load_plan(options.config_file, options.overrides, on_paper=True)
        rates = read_rates(options.rates)
        print(summary(plan, rates, options.gpus, options.price_per_gpu_hour))
    except ValueError as error:
        for line in str(error).splitlines():
            print(f"simulate: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
