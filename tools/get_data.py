"""Get public data sets: fetched (and gone on with), checked, unpacked where the recipes look.

Without names it prints the sizes of all sets. The same command goes on with what was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import leave_on_signals, need_packages

need_packages()

from rich.console import Console

from pipeline.commands.get_data import get_data
from pipeline.downloads.published_sets import SETS

EXAMPLE = """example:
  python tools/get_data.py voc2007 voc2012 --to datasets
  python tools/get_data.py coco2017 --to /data --mirror https://mirror.example.org/coco"""


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when the sets are there, 2 when the user has something to fix."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="SET", help=", ".join(SETS))
    to = "the folder that the recipes call datasets (default), $DETECTRON2_DATASETS for detection"
    parser.add_argument("--to", type=Path, default=Path("datasets"), metavar="DIR", help=to)
    mirror = "take the archives from URL/<their name>; their checksums stay"
    parser.add_argument("--mirror", metavar="URL", help=mirror)
    keep = "leave the archives in DIR/.downloads"
    parser.add_argument("--keep-archives", action="store_true", help=keep)
    options = parser.parse_args(arguments)
    keywords = {"mirror": options.mirror, "keep_archives": options.keep_archives}
    try:
        get_data(options.names, options.to, Console(), **keywords)
    except (ValueError, OSError) as error:
        below = "" if isinstance(error, ValueError) or error.filename else f" (below {options.to})"
        print(f"get_data: {error}{below}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("get_data: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    leave_on_signals()
    sys.exit(main())
