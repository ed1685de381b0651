"""Answers of the check before the start, kept as long as everything they depend on is as it was.

They lie below the plan's folder, so that `plan` can ask what `run` asks and need no second for it.
An answer counts for the same job over the same files, by the same code and packages, on the same
machine. Only clean answers are kept: a fault is looked for again each time. `run` trusts none of
them, it asks anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from pipeline.plan.data_identity import files_read
from pipeline.stages.files import write_text
from pipeline.stages.provenance import PACKAGES, version_of
from pipeline.stages.signature import canonical_json
from pretrain.data.file_index import folder_summary

CHECKED = "checked.json"  # below the plan's folder
MAX_KEPT = 1_000
MAX_STAMPED = 50_000  # files; the stamps of so many are read in a fifth of a second
CODE = Path(__file__).resolve().parents[2]
Stamp = tuple[int, int, int, int]


class Answer(BaseModel):
    """An answer to one job: its faults, notes on its data, remarks on its config, and demands.

    `demands` are the detectron2 keys that its result needs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    demands: dict[str, Any] = {}


ANSWERS: TypeAdapter[dict[str, Answer]] = TypeAdapter(dict[str, Answer])


def read_answers(root: Path) -> dict[str, Answer]:
    """Return the answers kept below a plan's folder by their key; none from a damaged file."""
    with contextlib.suppress(OSError, ValueError):
        return ANSWERS.validate_json((root / CHECKED).read_bytes())
    return {}


def keep_answers(root: Path, answers: dict[str, Answer]) -> None:
    """Keep the clean ones with those of before, and drop what is clean no more.

    Where nothing can be written nothing is kept.
    """
    kept = read_answers(root)
    clean = {key: each for key, each in (kept | answers).items() if not each.faults}
    if clean == kept:
        return
    newest = dict(list(clean.items())[-MAX_KEPT:])
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        write_text(root / CHECKED, ANSWERS.dump_json(newest, indent=1).decode() + "\n")


def keys_of(jobs: list[dict[str, Any]]) -> list[str]:
    """Return for each job the digest of all that its answer depends on, taken before it is asked.

    What changes while a job is being asked changes the key of the next time.
    """
    state_of = cache(_state)
    surroundings = {
        "code": [_state(CODE / name, ".py") for name in ("pipeline", "pretrain", "transfer")],
        "packages": {name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": [platform.node(), os.environ.get("CUDA_VISIBLE_DEVICES")],
    }
    keys = []
    for job in jobs:
        files = {str(path): state_of(path) for path in files_read(job["settings"])}
        content = canonical_json({"job": job, "files": files} | surroundings)
        keys.append(hashlib.sha256(content.encode()).hexdigest())
    return keys


def _state(path: Path, suffix: str = "") -> Any:
    """Return the stamp of a file, or a digest of those of all files below a folder.

    Of more than 50,000 files the kept index is taken (`pretrain.data.file_index`), to which a file
    that was overwritten in place by another of its size may be the same.
    """
    try:
        status = path.stat()
        if not S_ISDIR(status.st_mode):
            return _stamp(status)
        stamps = []
        for name, stamp in _walk(str(path)):
            if name.endswith(suffix):
                stamps.append((name, stamp))
            if len(stamps) > MAX_STAMPED:
                summary = folder_summary(path)
                return [summary.num_files, summary.digest]
    except (OSError, ValueError):
        return None
    return hashlib.sha256(repr(sorted(stamps)).encode(errors="surrogateescape")).hexdigest()


def _walk(root: str) -> Iterator[tuple[str, Stamp]]:
    """Yield every file and folder below `root`, links followed, with its stamp."""
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except OSError:  # a link to nowhere
                    status = entry.stat(follow_symlinks=False)
                if S_ISDIR(status.st_mode):
                    folders.append(entry.path)
                yield entry.path, _stamp(status)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
