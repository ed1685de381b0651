"""Install a pure-Python detectron2, unless one that works is already there."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import need_packages

need_packages()

from transfer.detectron2_wheel.install import ensure_detectron2
from transfer.detectron2_wheel.wheel import edits_table


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="A compiled detectron2 (conda-forge, or pip from its git repository) serves as well "
        "and is left alone.\nexample: python tools/install_detectron2.py --wheel-dir wheels",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--archive", type=Path, help="local source archive instead of a download")
    parser.add_argument("--wheel-dir", type=Path, help="keep the wheel in this folder")
    parser.add_argument(
        "--force", action="store_true", help="build and install the pure-Python one anew"
    )
    parser.add_argument(
        "--print-edits", action="store_true", help="list what is changed in detectron2, and stop"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 when detectron2 works, 2 with one line on stderr when not."""
    args = parse_args(arguments)
    if args.print_edits:
        print(edits_table())
        return 0
    if args.archive is not None and not args.archive.is_file():
        print(f"install_detectron2: {args.archive}: no such file (--archive)", file=sys.stderr)
        return 2
    try:
        print(ensure_detectron2(archive=args.archive, wheel_dir=args.wheel_dir, force=args.force))
    except (ValueError, OSError) as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("install_detectron2: interrupted; run it again to see what is there", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
