"""Write a folder with every wheel that a machine without network needs."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import need_packages

need_packages()

from transfer.detectron2_wheel.bundle import PLATFORM, PYTHON, README, Target, make_bundle

ROOT = Path(__file__).resolve().parents[1]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="needs network, and an environment with torch; pip's own settings count, such as\n"
        "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for a torch without CUDA\n"
        "example: python tools/make_bundle.py --python 3.12 --without-torch",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", default=PYTHON, help="of the machine (%(default)s)")
    parser.add_argument(
        "--platform",
        default=PLATFORM,
        help="newest that the machine's glibc takes (%(default)s)",
    )
    parser.add_argument("--without-torch", action="store_true", help="the machine has torch")
    parser.add_argument("--extra", action="append", default=[], help="of pyproject.toml; repeat it")
    parser.add_argument("--output", type=Path, default=ROOT / "bundle", help="a folder (bundle/)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 the bundle is there and whole, 2 with one line why it is not."""
    args = parse_args(arguments)
    with_torch = not args.without_torch
    try:
        target = Target(args.python, args.platform)
        what = "" if with_torch else " without torch"
        print(f"bundle: wheels{what} for Python {target.python}, {target.platform}", flush=True)
        print(make_bundle(ROOT, args.output, target, with_torch=with_torch, extras=args.extra))
    except (ValueError, OSError) as error:
        print(f"make_bundle: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_bundle: interrupted; nothing of it is kept", file=sys.stderr)
        return 2
    print(f"to install from it: {args.output / README}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
