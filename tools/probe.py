"""Probe a backbone: how well k-NN and linear classifiers tell classes apart by its features.

BACKBONE is a backbone.pth of this project, any checkpoint that convert_to_detectron2.py reads, or
random:ARCH for a network without training, such as random:resnet50.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain

from pydantic import ValidationError

from pipeline.config.yaml_files import apply_overrides, faults_of, load_yaml
from pretrain.config.probe import ProbeConfig
from pretrain.probes import open_backbone, probe_and_write
from transfer.checkpoints.read import read_backbone

EXAMPLE = """example:
  python tools/probe.py runs/cw-rgp/backbone.pth --config-file configs/pretrain/probe_digits.yaml
  python tools/probe.py moco_v2_800ep.pth.tar --config-file configs/pretrain/probe_imagenet.yaml \\
      data.root=/data/imagenet --output moco.json"""


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when the numbers are printed, 2 when the user has something to fix."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", metavar="BACKBONE", help="checkpoint, or random:ARCH")
    parser.add_argument("--config-file", type=Path, required=True, help="probe config (YAML)")
    parser.add_argument("--format", help="family of a checkpoint that is not recognised")
    parser.add_argument("--encoder", help="encoder or prefix, where a checkpoint holds several")
    parser.add_argument("--output", type=Path, help="write the numbers as JSON here")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        content = apply_overrides(load_yaml(options.config_file), options.overrides)
        config = ProbeConfig.model_validate(content)
        kind = {"format": options.format, "encoder": options.encoder}
        backbone = open_backbone(options.backbone, config, lambda path: read_backbone(path, **kind))
        probe_and_write(backbone, config, options.output)
    except ValidationError as error:
        print("\n".join(faults_of(error, str(options.config_file), ProbeConfig)), file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"probe: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
