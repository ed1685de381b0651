"""Check detection sets: counts, files, images, boxes. Exit 0 if they are sound, 2 if not.

Of a pipeline config, when no sets are named, the recipes of its tasks are checked too.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline.commands.command_line import config_among, need_packages
from transfer.files import number_of

need_packages()

from pipeline.plan.data_sets import chosen_sets, recipe_faults
from transfer.datasets.check import print_reports
from transfer.datasets.findings import Needs
from transfer.datasets.voc import make_splits


def main() -> int:
    """Read the arguments and check each set."""
    epilog = "example: python tools/check_data.py voc_2007_test --decode all"
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog)
    parser.add_argument("names", nargs="*", help="sets; default: the config's, or all there are")
    named = "a pipeline config that names sets; the flag is optional"
    parser.add_argument("--config-file", type=Path, help=named)
    decode = "decode images: of sets up to 2,000 or measured on (auto), all, none; in parallel"
    parser.add_argument("--decode", choices=("auto", "all", "none"), default="auto", help=decode)
    splits = "write ImageSets/Main/{trainval,test}.txt of VOC's layout from its Annotations"
    parser.add_argument("--make-splits", nargs=2, metavar=("SEED", "ROOT"), help=splits)
    arguments = parser.parse_args()
    names, config_file = arguments.names, arguments.config_file
    if config_file is None:
        config_file, names = config_among(names)
    try:
        if arguments.make_splits:
            seed, root = arguments.make_splits
            for path, count in make_splits(Path(root), seed).items():
                print(f"{path}: {number_of(count, 'image')}")
            return 0
        sets = chosen_sets(names, config_file)
    except (ValueError, OSError) as error:
        print("\n".join(f"check_data: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    checked = {name: (data, Needs(*needs)) for name, (data, *needs) in sets.items()}
    is_sound = print_reports(checked, arguments.decode, names or list(sets))
    logging.disable(logging.WARNING)
    faults = recipe_faults(config_file, classes=is_sound) if config_file and not names else []
    print("".join(f"{fault}\n" for fault in faults), end="", file=sys.stderr)
    return 0 if is_sound and not faults else 2


if __name__ == "__main__":
    sys.exit(main())
