"""Probe a backbone: how well k-NN and linear classifiers tell classes apart by its features.

BACKBONE is a backbone.pth of this project, any checkpoint that convert_to_detectron2.py reads, or
random:ARCH for a network without training, such as random:resnet50. An example:
python tools/probe.py runs/cw-rgp/backbone.pth --config-file configs/pretrain/probe_digits.yaml
"""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import add_config, need_packages, parsed

need_packages()
from pipeline.config.kinds import load_config
from pipeline.config.yaml_files import apply_overrides, validated
from pretrain.config.probe import ProbeConfig, named_random
from pretrain.data.splits import check_splits
from pretrain.runtime.files import check_folder_of
from transfer.checkpoints.other_files import check_present


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when the numbers are printed, 2 when the user has something to fix."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("backbone", metavar="BACKBONE", help="checkpoint, or random:ARCH")
    add_config(parser, "probe")
    parser.add_argument("--format", help="family of a checkpoint that is not recognised")
    parser.add_argument("--encoder", help="encoder or prefix, where a checkpoint holds several")
    parser.add_argument("--output", type=Path, help="write the numbers as JSON here")
    options = parsed(parser, arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        content = load_config(options.config_file, "probe config")
        content = apply_overrides(content, options.overrides)
        config = validated(ProbeConfig, content, str(options.config_file))
        if named_random(options.backbone) is None:
            check_present(Path(options.backbone), options.format)
        check_splits(config.data, ("train", "test"))
        check_folder_of(options.output)
        from pretrain.probes import open_backbone, probe_and_write  # noqa: PLC0415  (imports torch)
        from transfer.checkpoints import read_backbone  # noqa: PLC0415

        kind = {"format": options.format, "encoder": options.encoder}
        backbone = open_backbone(options.backbone, config, lambda path: read_backbone(path, **kind))
        probe_and_write(backbone, config, options.output)
    except (ValueError, OSError) as error:
        print(f"probe: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
