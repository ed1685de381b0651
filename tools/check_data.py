"""Check detection sets: counts, files, images, boxes. Exit 0 if they are sound, 2 if not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.plan.data_sets import chosen_sets
from transfer.datasets.check import check_sets
from transfer.datasets.findings import Needs
from transfer.datasets.voc import make_splits


def main() -> int:
    """Read the arguments and check each set."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/check_data.py voc_2007_test --decode all",
    )
    parser.add_argument("names", nargs="*", help="sets; default: the config's, or all there are")
    parser.add_argument("--config-file", type=Path, help="a pipeline config that names sets")
    parser.add_argument(
        "--decode",
        choices=("auto", "all", "none"),
        default="auto",
        help="decode images: of sets up to 2,000 or measured on (auto), all, none; in parallel",
    )
    parser.add_argument(
        "--make-splits", nargs=2, metavar=("SEED", "ROOT"),
        help="write ImageSets/Main/{trainval,test}.txt of VOC's layout from its Annotations",
    )  # fmt: skip
    arguments = parser.parse_args()
    try:
        if arguments.make_splits:
            seed, root = arguments.make_splits
            for path, count in make_splits(Path(root), int(seed)).items():
                print(f"{path}: {count:,} images")
            return 0
        sets = chosen_sets(arguments.names, arguments.config_file)
    except (ValueError, OSError) as error:
        print("\n".join(f"check_data: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    broken = False
    checked = {name: (data, Needs(*needs)) for name, (data, *needs) in sets.items()}
    for name, report in check_sets(checked, arguments.decode):
        print(f"{name}: {report.summary()}", flush=True)
        for line in report.notes:
            print(f"{name}: note: {line}")
        for line in report.faults:
            print(f"{name}: {line}", file=sys.stderr)
        broken = broken or bool(report.faults)
    return 2 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
