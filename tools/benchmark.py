"""Print how fast a part of the package is; an example: python tools/benchmark.py whitening."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/pretrain.py hides pretrain
from pipeline.commands.command_line import need_packages

need_packages()
from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main())
