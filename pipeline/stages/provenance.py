"""The provenance of a result: code and versions as each attempt at it started, hardware."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.stages.files import read_json, read_json_lines

ATTEMPTS = "attempts.jsonl"  # below a run folder: a line when an attempt starts, one when it ends
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
STAGE_PYTHON = "STAGE_PYTHON"  # in a job: the words that start a stage's Python, as JSON
CODE_STATE = "code_state.json"  # in a copy of the code: what the original was
CODE_FOLDERS = ("pipeline", "pretrain", "transfer")
PACKAGES = (
    "torch", "torchvision", "detectron2", "numpy", "pillow", "simplejpeg", "pycocotools",
    "faster-coco-eval", "fvcore",
)  # fmt: skip
MODIFIED = "modified (uncommitted) code"
UNKNOWN = {"commit": None, "dirty": None}


def code_folder() -> Path:
    """Return the folder of the code that runs: a checkout, or a copy of one."""
    return Path(__file__).resolve().parents[2]


def with_this_code(environment: Mapping[str, str]) -> dict[str, str]:
    """Return a child's environment in which Python imports the code of this process.

    Neither the folder that it is started from nor what is installed comes before it.
    """
    paths = [str(code_folder()), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


@cache
def code_state() -> dict[str, Any]:
    """Return the code's state when it is first asked for, which is when a process starts.

    `commit`; `dirty`, whether there are changes that are not committed; then `diff`, a digest of
    these changes and of Python files of the packages that git does not track. None where unknown:
    there is no git, or the code is no part of the repository around it.
    """
    folder = code_folder()
    if (folder / CODE_STATE).exists():
        state: dict[str, Any] = read_json(folder / CODE_STATE)
        return state
    options = ("--binary", "--no-ext-diff", "--no-textconv", "--no-color")
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "diff", *options, "HEAD")
    others = _git(folder, "ls-files", "-z", "--others", "--", *CODE_FOLDERS)
    is_tracked = bool(_git(folder, "ls-files", "--", CODE_FOLDERS[0]))
    if commit is None or changes is None or others is None or not is_tracked:
        return UNKNOWN
    digest = hashlib.sha256(changes)
    new = [name for name in sorted(others.split(b"\0")) if name.endswith(b".py")]
    for name in new:
        digest.update(name + b"\0" + (folder / os.fsdecode(name)).read_bytes() + b"\0")
    dirty = bool(changes or new)
    state = {"commit": commit.decode().strip(), "dirty": dirty}
    return state | ({"diff": digest.hexdigest()[:16]} if dirty else {})


def origin() -> dict[str, Any]:
    """Return what an attempt records before it imports its stage: code and versions.

    And, where they are named, the GPUs, and what started it in a container.
    """
    gpus, container = os.environ.get(VISIBLE_GPUS), os.environ.get(STAGE_PYTHON)
    named = {} if gpus is None else {"visible_gpus": gpus}
    return (
        named
        | ({"container": json.loads(container)} if container else {})
        | {
            "code": code_state(),
            "python": platform.python_version(),
            "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        }
    )


def provenance(attempt: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return what made a result: this attempt, the hardware, and all attempts so far."""
    return attempt | {"attempts": attempts_at(run_dir) or [attempt]} | hardware()


def hardware() -> dict[str, Any]:
    """Return the machine that this process runs on, and its GPUs if torch was imported."""
    torch = sys.modules.get("torch")  # the stage imported it if it needed it
    num_gpus = torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "gpus": [torch.cuda.get_device_name(index) for index in range(num_gpus)] if torch else [],
    }


def attempts_at(run_dir: Path) -> list[dict[str, Any]]:
    """Return what each attempt at a stage recorded when it started; `{}` of one that did not."""
    attempts: list[dict[str, Any]] = []
    is_open = False
    for entry in read_json_lines(run_dir / ATTEMPTS):
        if "started" in entry:
            attempts.append(entry)
        elif not is_open:
            attempts.append({})
        is_open = "started" in entry
    return attempts


def code_fault(made: Mapping[str, Any]) -> str | None:
    """Return why the code behind a result cannot be told from one commit, None for clean code.

    Args:
        made: the provenance in a manifest.
    """
    attempts = made.get("attempts") or [made]
    states = [attempt.get("code") or {} for attempt in attempts]
    if any(state.get("dirty") for state in states):
        return MODIFIED
    if any(state.get("commit") is None for state in states):
        return "unknown code (no git)"
    kept = [[attempt.get(key) for key in ("code", "python", "packages")] for attempt in attempts]
    if any(each != kept[0] for each in kept):
        return "code or packages that changed between attempts"
    return None


def _git(folder: Path, *arguments: str) -> bytes | None:
    """Return git's answer about the code, None where it has none."""
    hidden = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # of a hook that this runs in
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    try:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def version_of(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
