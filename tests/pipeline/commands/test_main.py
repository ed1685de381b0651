"""The commands start quickly."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_status_imports_no_torch_and_no_plots() -> None:
    code = (
        "import sys, pipeline.commands.main\n"
        "bad = {'torch', 'matplotlib', 'submitit', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
