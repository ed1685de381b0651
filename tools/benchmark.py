"""Print how fast a part of the package is; an example: python tools/benchmark.py whitening."""

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import need_packages

need_packages()
# name: (module, options, summary), for benchmark_<name>; an option with a + takes several numbers
BENCHMARKS = {
    "commands": ("command_lines", ("rounds", "stages"), "CPU seconds until a command answers"),
    "whitening": ("whitening", ("rounds", "threads+"), "whitening losses against a plain loop"),
    "loader": ("loader", ("rounds", "workers"), "views per second against a plain PIL pipeline"),
    "step": ("step", ("rounds", "threads", "workers"), "what a training step spends where"),
    "detection": ("detection", ("rounds", "threads", "workers"), "an iteration of fine-tuning"),
    "evaluation": ("coco_evaluation", ("rounds", "images", "detections", "mask_images"),
                   "COCO's AP by faster-coco-eval against pycocotools"),
    "finetuning": ("finetuning", (), "a fine-tuning of the demo by part, from import to picture"),
    "plan": ("plan_scale", ("rounds", "images", "voc_images"), "identities of a plan's data"),
    "scale": ("coco_scale", ("images", "objects"), "checks and starts on a set of COCO's size"),
    "slurm": ("slurm_commands", ("stages", "dry_stages"), "commands of a large plan on SLURM"),
}  # fmt: skip
OPTIONS = {
    "images": "images of the set for boxes (default 5000), of COCO (120000, 118287)",
    "objects": "polygons of the set of COCO's size (default 860001)",
    "voc_images": "images of VOC (default 5000)",
    "detections": "detections of an image (default 100)",
    "mask_images": "images of the set for masks (default 250)",
    "rounds": "timed rounds",
    "stages": "stages of the plan that is submitted, held and cancelled (220), or finished (200)",
    "dry_stages": "stages of the plan that is only planned (default 5000)",
    "threads": "CPU threads of the main process",
    "threads+": "CPU threads of the main process, a table for each number",
    "workers": "processes of the loader",
}


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and run one benchmark; return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, (_, options, summary) in BENCHMARKS.items():
        command = commands.add_parser(name, help=summary, argument_default=argparse.SUPPRESS)
        for option in options:
            flag = "--" + option.removesuffix("+").replace("_", "-")
            many = "+" if option.endswith("+") else None
            command.add_argument(flag, type=int, nargs=many, help=OPTIONS[option])
    chosen = vars(parser.parse_args(arguments))
    name = chosen.pop("name")
    module = importlib.import_module(f"benchmarks.{BENCHMARKS[name][0]}")
    getattr(module, f"benchmark_{name}")(**chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
