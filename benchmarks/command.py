"""The command line of the benchmarks: their names, their options, and the JSON that each writes."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Table, write_tables

DESCRIPTION = "Print how fast a part of the package is."
EPILOG = "example: python tools/benchmark.py whitening --json whitening.json"
# name: (module, options, summary), for benchmark_<name>
BENCHMARKS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "commands": ("command_lines", ("rounds", "stages"), "CPU seconds until a command answers"),
    "whitening": ("whitening", ("rounds", "threads+", "device"),
                  "whitening losses against a plain loop"),
    "loader": ("loader", ("rounds", "workers"), "views per second against a plain PIL pipeline"),
    "step": ("step", ("recipe", "batch_size", "rounds", "threads", "workers", "precision",
                      "channels_last", "compile"),
             "what a training step spends where, and its peak memory"),
    "methods": ("step", ("rounds", "threads", "precision"),
                "the same of every loss by its name, on two views of small images"),
    "detection": ("detection", ("rounds", "threads", "workers"),
                  "an iteration of fine-tuning, an image in inference, and the peak memory"),
    "evaluation": ("coco_evaluation", ("rounds", "images", "detections", "mask_images"),
                   "COCO's AP by faster-coco-eval against pycocotools"),
    "finetuning": ("finetuning", ("steps",),
                   "a fine-tuning of the demo by part, from import to picture"),
    "plan": ("plan_scale", ("rounds", "images", "voc_images"), "identities of a plan's data"),
    "scale": ("coco_scale", ("images", "objects"), "checks and starts on a set of COCO's size"),
    "slurm": ("slurm_commands", ("stages", "dry_stages"), "commands of a large plan on SLURM"),
}  # fmt: skip


def positive(text: str) -> int:
    """Return a whole number of 1 or more."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {number}, wanted 1 or more")
    return number


def natural(text: str) -> int:
    """Return a whole number of 0 or more."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"got {number}, wanted 0 or more")
    return number


OPTIONS: dict[str, dict[str, Any]] = {
    "recipe": {"type": str, "metavar": "FILE", "help": "a pretraining config (default: cases)"},
    "batch_size": {"help": "images of a step of the recipe (default: its own)"},
    "images": {"help": "images of the set for boxes (default 5000), of COCO (120000, 118287)"},
    "objects": {"help": "polygons of the set of COCO's size (default 860001)"},
    "voc_images": {"help": "images of VOC (default 5000)"},
    "detections": {"help": "detections of an image (default 100)"},
    "mask_images": {"help": "images of the set for masks (default 250)"},
    "rounds": {"help": "timed rounds"},
    "stages": {
        "help": "stages of the plan that is submitted, held and cancelled (220), or finished (200)"
    },
    "dry_stages": {"help": "stages of the plan that is only planned (default 5000)"},
    "steps": {"help": "iterations of the fine-tuning (default 200)"},
    "threads": {"help": "CPU threads of the main process"},
    "threads+": {"nargs": "+", "help": "CPU threads of the main process, a table for each number"},
    "device": {"choices": ("cpu", "cuda"), "help": "this one alone (default: all there are)"},
    "precision": {
        "choices": ("float32", "tf32", "bf16", "fp16"),
        "help": "as compute.precision (float32)",
    },
    "channels_last": {"action": "store_true", "help": "as compute.channels_last"},
    "compile": {"action": "store_true", "help": "as compute.compile"},
    "workers": {"type": natural, "help": "processes of the loader"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; return 0, or 2 where an option does not fit this machine."""
    options = vars(parser().parse_args(arguments))
    name, path = options.pop("name"), options.pop("json", None)
    module = importlib.import_module(f"benchmarks.{BENCHMARKS[name][0]}")
    run: Callable[..., list[Table]] = getattr(module, f"benchmark_{name}")
    defaults = {key: each.default for key, each in inspect.signature(run).parameters.items()}
    try:
        tables = run(**options)
        if path is not None:
            write_tables(path, name, defaults | options, tables)
            print(f"wrote {path}")
    except (ValueError, OSError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser; options that are not given are left out of what it returns."""
    answer = argparse.ArgumentParser(description=DESCRIPTION, epilog=EPILOG)
    commands = answer.add_subparsers(dest="name", required=True)
    for name, (_, options, summary) in BENCHMARKS.items():
        command = commands.add_parser(name, help=summary, argument_default=argparse.SUPPRESS)
        for option in options:
            flag = "--" + option.removesuffix("+").replace("_", "-")
            settings = OPTIONS[option]
            if "action" not in settings and "choices" not in settings:
                settings = {"type": positive, **settings}
            command.add_argument(flag, **settings)
        command.add_argument(
            "--json", type=json_file, metavar="FILE", help="also write what is printed, as JSON"
        )
    return answer


def json_file(text: str) -> Path:
    """Return the path of a file that can be written once the benchmark is over."""
    path = Path(text)
    if path.exists() and not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: not a regular file; name one, or a new one")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        what = "cannot be written to" if path.parent.is_dir() else "no such folder"
        raise argparse.ArgumentTypeError(f"{path.parent}: {what}; make it, or name another")
    return path
