"""The command: which checkouts, which parts, the table, the exit code."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.parity.comparison import Row, failed, table
from benchmarks.parity.peers import PEERS, ROOT, PeerError, commit, path_fault

DESCRIPTION = (
    "Print what is equal, and to how much, between this project and the code that it follows. "
    "WARNING: this executes the code of the checkouts that you name; name none that you do not "
    "trust."
)
EPILOG = """parts: %s

exit codes: 0 everything is as equal as its row demands, 1 something is not, 2 a path or a choice
is wrong.

example:
  python -m benchmarks.parity --moco ../moco --cw-rgp ../CW-RGP --w-mse ../self-supervised"""


@dataclass(frozen=True)
class Part:
    """A module with `compare(paths, scratch)`, and the peers of which it takes one or more."""

    module: str
    peers: tuple[str, ...]


PARTS = {
    "conversion": Part("benchmarks.parity.conversion", ("moco",)),
    "configs": Part("benchmarks.parity.configs", ("moco",)),
    "detection": Part("benchmarks.parity.detection", ("moco",)),
    "losses": Part("benchmarks.parity.losses", ("w-mse", "cw-rgp")),
    "training": Part("benchmarks.parity.training", ("w-mse", "cw-rgp")),
    "recipes": Part("benchmarks.parity.recipes", ("w-mse", "cw-rgp")),
    "evaluation": Part("benchmarks.parity.evaluation", ("w-mse", "cw-rgp")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 0 if all rows agree, 1 if not, 2 if a path or a choice is wrong."""
    options = vars(parser().parse_args(arguments))
    paths = {name: path for name in PEERS if (path := options[name.replace("-", "_")])}
    names = options["only"] or [name for name, part in PARTS.items() if set(part.peers) & {*paths}]
    if fault := first_fault(paths, names):
        print(f"parity: {fault}", file=sys.stderr)
        return 2
    print(sides(paths), end="\n\n", flush=True)
    rows = []
    for name in names:
        print(f"parity: {name} ..", file=sys.stderr, flush=True)
        rows += part_rows(name, paths)
    print(table(rows))
    return 0 if all(row.agrees for row in rows) else 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    answer = argparse.ArgumentParser(
        prog="python -m benchmarks.parity", description=DESCRIPTION,
        epilog=EPILOG % ", ".join(PARTS), formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for name, peer in PEERS.items():
        text = f"a checkout of {peer.repository} (followed here: {peer.followed})"
        answer.add_argument(f"--{name}", type=Path, metavar="PATH", help=text)
    answer.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help="only these parts")
    return answer


def first_fault(paths: Mapping[str, Path], names: Sequence[str]) -> str | None:
    """Return what is wrong with the command line, or None."""
    if not paths:
        return f"give at least one of {', '.join(f'--{name} PATH' for name in PEERS)}"
    for name, path in paths.items():
        if fault := path_fault(name, path):
            return fault
    for name in names:
        peers = PARTS[name].peers
        if not set(peers) & {*paths}:
            return f"--only {name} needs {' or '.join(f'--{peer} PATH' for peer in peers)}"
    return None


def sides(paths: Mapping[str, Path]) -> str:
    """Return the commit of each side, and the versions that both run on."""
    lines = [f"{PEERS[name].repository}: {commit(path)}" for name, path in paths.items()]
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "torchvision", "detectron2")
    ]
    return "\n".join(
        [*lines, f"this project: {commit(ROOT)}", f"on the CPU, {', '.join(versions)}"]
    )


def part_rows(name: str, paths: Mapping[str, Path]) -> list[Row]:
    """Return the rows of a part, or one that says why there are none."""
    with tempfile.TemporaryDirectory(prefix="parity_") as scratch:
        try:
            compare = importlib.import_module(PARTS[name].module).compare
            rows: list[Row] = compare(dict(paths), Path(scratch))
        except (PeerError, OSError, ValueError, subprocess.TimeoutExpired) as error:
            return [failed(name, " ".join(str(error).split()))]
    return rows
