"""Show a run by hand in trackers: run its command beside them, and end with its exit code.

A pipeline has `tracking:` in its config instead. What is shown is the `metrics.jsonl` that
tools/pretrain.py and tools/train_net.py write into their output folder. The same command again goes
on in the same tracked run, at the step after the last that was sent.
"""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline.commands.command_line import need_packages

need_packages()
from pipeline.tracking.child import tracking_by_hand

EXAMPLE = """example:
  python tools/track.py '{wandb: {project: mine}}' runs/watched \\
      python tools/pretrain.py --config-file F --output-dir runs/watched"""
PASSED_ON = (signal.SIGTERM, signal.SIGUSR2)


def main(arguments: list[str] | None = None) -> int:
    """Return 0 where the command does, 2 where it is not started; else exit with its code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tracking", metavar="YAML", help="trackers, such as '{wandb: {}}'")
    parser.add_argument("folder", type=Path, help="the output folder of the command")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its words")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    config = {"command": " ".join(options.command)}
    try:
        if not options.command:
            raise ValueError("the command is missing, which writes into the folder")
        trackers = tracking_by_hand(options.tracking, options.folder, config)
        with trackers, subprocess.Popen(options.command) as child:
            for number in PASSED_ON:
                signal.signal(number, lambda which, _: child.send_signal(which))
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
            if code := child.wait():  # so that the run is told to have failed
                sys.exit(code if code > 0 else 128 - code)
    except (ValueError, OSError) as error:
        print(f"track: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
