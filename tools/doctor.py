"""Say what this machine has for a benchmark, and what to do about the rest."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import need_packages

need_packages()

from pipeline.commands.doctor import Finding, as_json, examine, healthy, table
from transfer.detectron2_wheel.install import probe

EXAMPLE = """example:
  python tools/doctor.py
  python tools/doctor.py --json | jq '.[] | select(.status != "ok")'"""


def detectron2() -> Finding:
    """Return which detectron2 a new process finds, and whether it works."""
    installed = probe()
    remedy = "run python tools/install_detectron2.py, or create environment.yml's environment"
    if installed is None:
        return Finding("detectron2", "broken", "not installed", remedy, required=True)
    if installed.problem:
        text = f"{installed}: {installed.problem}"
        return Finding("detectron2", "broken", text, remedy, required=True)
    return Finding("detectron2", "ok", str(installed), required=True)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 the demo can run here, 1 something it needs is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON for a machine")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="where runs would go")
    options = parser.parse_args(arguments)
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    findings = examine(detectron2(), datasets_root=root, output_dir=options.output_dir)
    print(as_json(findings) if options.json else table(findings))
    return 0 if healthy(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
