"""Pretrain one backbone: images in, backbone.pth out; run again, it goes on where it stopped."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain

from pydantic import ValidationError

from pipeline.config.yaml_files import apply_overrides, faults_of, load_yaml
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
    parser.add_argument("--config-file", type=Path, required=True, help="pretraining config (YAML)")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of this run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    options = parser.parse_intermixed_args(arguments)
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s")
    try:
        content = apply_overrides(load_yaml(options.config_file), options.overrides)
        config = PretrainConfig.model_validate(content)
        check_start(config, num_processes=int(os.environ.get("WORLD_SIZE", "1")))
        from pretrain.train import pretrain  # noqa: PLC0415  (imports torch)

        metrics = pretrain(config, options.output_dir)
    except ValidationError as error:
        tell_fault("\n".join(faults_of(error, str(options.config_file), PretrainConfig)))
        return 2
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
