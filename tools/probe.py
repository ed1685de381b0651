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
from pydantic import ValidationError

from pipeline.config.yaml_files import apply_overrides, faults_of, load_yaml
from pretrain.config.probe import ProbeConfig, named_random
from pretrain.data.splits import check_splits
from pretrain.runtime.files import check_folder_of
from transfer.checkpoints.other_files import check_present


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when the numbers are printed, 2 when the user has something to fix."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
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
        if named_random(options.backbone) is None:
            check_present(Path(options.backbone), options.format)
        check_splits(config.data, ("train", "test"))
        check_folder_of(options.output)
        from pretrain.probes import open_backbone, probe_and_write  # noqa: PLC0415  (imports torch)
        from transfer.checkpoints import read_backbone  # noqa: PLC0415

        kind = {"format": options.format, "encoder": options.encoder}
        backbone = open_backbone(options.backbone, config, lambda path: read_backbone(path, **kind))
        probe_and_write(backbone, config, options.output)
        return 0
    except ValidationError as error:
        text = "\n".join(faults_of(error, str(options.config_file), ProbeConfig))
    except (ValueError, OSError) as error:
        text = f"probe: {error}"
    print(text, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
