"""Pretrain one backbone: images in, backbone.pth out; run again, it goes on where it stopped."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import add_config, need_packages, parsed

need_packages()
from pipeline.config.kinds import load_config
from pipeline.config.yaml_files import apply_overrides, validated
from pipeline.plan.place import PRETRAINING, folder_fault
from pretrain.config.pretrain import PretrainConfig
from pretrain.data.splits import check_start
from pretrain.runtime.faults import DivergedError, tell_fault, tell_stopped

EXAMPLE = """example:
  python tools/pretrain.py --config-file configs/pretrain/digits_cw_rgp.yaml \\
      --output-dir runs/cw-rgp max_steps=50
  torchrun --nproc-per-node 8 tools/pretrain.py --config-file F --output-dir D"""


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when `backbone.pth` is written, 1 if training diverged, 2 for faults, 75 stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser, "pretraining")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of this run")
    options = parsed(parser, arguments)
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s")
    try:
        content = load_config(options.config_file, "pretraining config")
        content = apply_overrides(content, options.overrides)
        config = validated(PretrainConfig, content, str(options.config_file))
        if fault := folder_fault(options.output_dir, PRETRAINING, "--output-dir"):
            raise ValueError(fault)
        check_start(config, num_processes=int(os.environ.get("WORLD_SIZE", "1")))
        from pretrain.train import pretrain  # noqa: PLC0415  (imports torch)

        metrics = pretrain(config, options.output_dir)
    except (ValueError, OSError, DivergedError) as error:
        tell_fault(f"pretrain: {error}")
        return 1 if isinstance(error, DivergedError) else 2
    except (KeyboardInterrupt, SystemExit):
        return tell_stopped()
    if first:
        scores = "".join(f", {key} {metrics[key]:.2f}" for key in metrics if "knn/" in key)
        print(f"{options.output_dir}/backbone.pth: loss {metrics.get('loss', 0):.4f}{scores}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
