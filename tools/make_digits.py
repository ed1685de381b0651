"""Builds the embedded digits data set (COCO and VOC layouts, crops)."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import need_packages

need_packages()


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when the data set is there, 2 when the user has to fix something."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python tools/make_digits.py --output-dir my/digits"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("datasets/digits"))
    parser.add_argument("--force", action="store_true", help="build anew what is there")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up as after Ctrl-C
    from examples.digits.build import build_digits  # noqa: PLC0415  (imports numpy)

    try:
        build_digits(options.output_dir, force=options.force)
    except (ValueError, OSError) as error:
        print(f"make_digits: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
