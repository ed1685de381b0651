"""The tables in docs/scaling.md are what its commands print."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"^python (tools/simulate\.py .*configs/pipeline/full_comparison.*)$", re.M)


def test_the_tables_are_what_the_commands_print() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text("utf-8").replace("\\\n", " ")
    commands = [line for line in COMMAND.findall(text) if "my_rates" not in line]
    assert len(commands) == 3
    printed = []
    for command in commands:
        answer = subprocess.run(
            [sys.executable, *shlex.split(command)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        printed += [line for line in answer.stdout.splitlines() if line[:1] not in ("-", "")]
    shown = [line for line in text.splitlines() if line.startswith(("|", "97 stages"))]
    assert shown == printed
