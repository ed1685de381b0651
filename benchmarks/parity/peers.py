"""The published repositories: where they must lie, their commits, and running their code.

Their code runs in child processes only, see `benchmarks.parity.child`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT_S = 3600.0


@dataclass(frozen=True)
class Peer:
    """A repository, a file that shows a folder to be its checkout, and the commit followed here."""

    repository: str
    marker: str
    followed: str


PEERS = {
    "moco": Peer("facebookresearch/moco", "detection/train_net.py", "7397dfe"),
    "cw-rgp": Peer("winci-ai/CW-RGP", "base/methods/cwrgp.py", "5bbf6ed"),
    "w-mse": Peer("htdt/self-supervised", "methods/w_mse.py", "d9662c8"),
}


class PeerError(Exception):
    """A peer's code ended with an error; the message is its last line."""


def path_fault(name: str, path: Path) -> str | None:
    """Return why `path` is no checkout of the peer, or None."""
    peer = PEERS[name]
    if (path / peer.marker).is_file():
        return None
    return f"--{name} {path}: has no {peer.marker}, wanted a checkout of {peer.repository}"


def commit(path: Path) -> str:
    """Return a checkout's short commit, and whether files differ from it.

    `unknown commit` where `path` is not the top of a checkout.
    """
    try:
        top, head = _git(path, "rev-parse", "--show-toplevel", "--short=7", "HEAD").splitlines()
        if Path(top).resolve() != path.resolve():
            return "unknown commit"
        changed = _git(path, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown commit"
    return f"{head} with changes" if changed else head


def _git(path: Path, *words: str) -> str:
    command = ["git", "-C", str(path), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run_script(script: Path, *arguments: Path) -> None:
    """Run a peer's script with python.

    Raises:
        PeerError: it failed.
    """
    _run([str(script), *map(str, arguments)], script.parent)


def call(folder: Path, function: str, inputs: Any) -> Any:
    """Return what `function` (`module:name`) of ours returns in a child that imports from `folder`.

    Inputs and outputs are tensors, numbers, texts, lists and dicts.

    Raises:
        PeerError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="parity_") as scratch:
        given, returned = Path(scratch) / "inputs.pt", Path(scratch) / "outputs.pt"
        torch.save(inputs, given)
        words = ["-m", "benchmarks.parity.child", function, str(folder.resolve())]
        _run([*words, str(given), str(returned)], Path(scratch))
        return torch.load(returned, weights_only=True)


def _run(words: list[str], folder: Path) -> None:
    """Run python on the CPU with one thread, so that sums add in the same order on both sides."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")
    env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    answer = subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True,
        check=False, timeout=TIME_LIMIT_S,
    )  # fmt: skip
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        raise PeerError(lines[-1])
