"""Pretrain one backbone: images in, backbone.pth out; run again, it goes on where it stopped."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain

from pydantic import ValidationError

from pipeline.yaml_config import apply_overrides, faults_of, load_yaml
from pretrain.config import PretrainConfig
from pretrain.train import pretrain

EXAMPLE = """example:
  python tools/pretrain.py --config-file configs/pretrain/digits_cw_rgp.yaml \\
      --output-dir runs/cw-rgp max_steps=50"""


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when `backbone.pth` is written, 2 when the user has something to mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", type=Path, required=True, help="pretraining config (YAML)")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of this run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        content = apply_overrides(load_yaml(options.config_file), options.overrides)
        metrics = pretrain(PretrainConfig.model_validate(content), options.output_dir)
    except ValidationError as error:
        print("\n".join(faults_of(error, str(options.config_file))), file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 2
    print(f"{options.output_dir / 'backbone.pth'}: loss {metrics.get('loss', float('nan')):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
