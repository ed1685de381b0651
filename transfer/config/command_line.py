"""The command line of `tools/train_net.py`, and its config, read before torch is imported.

Tested in tests/transfer/detection/test_cli.py.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import yaml

from transfer.config.finetune import Optimizer, named_optimizer, optimizer_fault
from transfer.config.recipe import unknown_keys
from transfer.files import near_path, one_line

EXAMPLE = """example:
  python tools/train_net.py --config-file configs/transfer/voc_faster_rcnn_r50_c4_24k.yaml \\
      --num-gpus 8 MODEL.WEIGHTS backbone.pkl OUTPUT_DIR runs/voc"""
OPTIMIZERS = sorted(get_args(Optimizer))
FIRST_PORT, NUM_PORTS = 49_152, 16_384  # the ports that nobody is assigned
Loader = Callable[[str], dict[str, Any]]
logger = logging.getLogger(__name__)


def argument_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return a parser of detectron2's options, by its names and with its defaults."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="detectron2 config")
    parser.add_argument("--resume", action="store_true", help="go on from what OUTPUT_DIR holds")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of each machine")
    parser.add_argument("--num-machines", type=int, default=1, help="machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="which machine, from 0")
    place = f"tcp://127.0.0.1:{FIRST_PORT + os.getuid() % NUM_PORTS}"
    parser.add_argument("--dist-url", default=place, help="where the processes meet")
    parser.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="instead of the config's SOLVER.OPTIMIZER; wants its SOLVER.BASE_LR behind it",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config"
    )
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Return the options, those behind a `KEY VALUE` too, which argparse takes for a key.

    A config may stand before the first key without its flag.
    """
    pairs: list[str] = []
    while True:
        options = parser.parse_args(arguments)
        rest = list(options.opts or [])
        at = next((place for place, word in enumerate(rest) if word.startswith("--")), None)
        if at is None:
            options.opts = pairs + rest
            if not options.config_file and "".join(options.opts[:1]).endswith((".yaml", ".yml")):
                options.config_file = options.opts.pop(0)
            return options
        pairs += rest[:at]
        arguments = arguments[: len(arguments) - len(rest)] + rest[at:]


def merged_config(
    cfg: Any, path: str, changes: list[str], load: Loader, optimizer: str | None = None
) -> Any:
    """Return the config `cfg` with the file at `path`, `KEY VALUE` changes and an optimiser.

    Args:
        cfg: detectron2's defaults, as its own node or as yacs'.
        path: the config file.
        changes: keys and values in turn.
        load: reads a config file with its `_BASE_`.
        optimizer: instead of the config's.

    Raises:
        ValueError: the file is not there, or a key or value is none of detectron2's.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path or '--config-file'}: no such config file{near_path(Path(path))}")
    try:
        content = load(path)  # plain YAML: nothing in it is executed
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a config: {one_line(error)}") from None
    if unknown := list(unknown_keys(content, cfg)):
        raise ValueError("\n".join(f"{path}: {fault}" for fault in unknown))
    try:
        cfg.merge_from_other_cfg(type(cfg)(content))
        cfg.merge_from_list(changes)
    except (KeyError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"{path}: detectron2 refuses the config: {one_line(error)}") from None
    overrides = [f"{key}={value}" for key, value in zip(changes[::2], changes[1::2], strict=True)]
    if fault := optimizer_fault(content, {"SOLVER": cfg.SOLVER}, optimizer, overrides):
        raise ValueError(f"{path}: {fault}")
    cfg.SOLVER.OPTIMIZER = optimizer or named_optimizer({"SOLVER": cfg.SOLVER})
    if cfg.SOLVER.OPTIMIZER not in OPTIMIZERS:
        raise ValueError(
            f"{path}: SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}, wanted one of "
            f"{', '.join(OPTIMIZERS)}"
        )
    if cfg.SEED < 0:
        cfg.SEED = 0  # so that a killed run can be resumed
        logger.info("SEED is not set: 0")
    return cfg


def weights_place_fault(weights: str) -> str | None:
    """Return why MODEL.WEIGHTS names no local .pkl or .pth file, which it must unless empty."""
    path = Path(weights)
    if weights and ("://" in weights or path.suffix not in (".pkl", ".pth")):
        return (
            f"MODEL.WEIGHTS is {weights}, wanted a local file: .pkl as "
            "tools/convert_to_detectron2.py writes it, or .pth of an earlier run"
        )
    if not weights or path.is_file():
        return None
    return f"{weights}: no such file (MODEL.WEIGHTS){near_path(path)}"
