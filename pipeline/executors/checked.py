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
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from pipeline.plan.data_identity import content_read
from pipeline.stages.files import write_text
from pipeline.stages.provenance import PACKAGES, version_of
from pipeline.stages.signature import canonical_json

CHECKED = "checked.json"  # below the plan's folder
MAX_KEPT = 1_000
CODE = Path(__file__).resolve().parents[2]


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

    A job holds the identity of what its stage reads, which the plan took. What changes since then
    changes the key of the next time.
    """
    surroundings = {
        "code": [_code_state(CODE / name) for name in ("pipeline", "pretrain", "transfer")],
        "packages": {name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": [platform.node(), os.environ.get("CUDA_VISIBLE_DEVICES")],
    }
    probed: dict[str, Any] = {}
    keys = []
    for job in jobs:
        probe = job["settings"].get("probe") or {}
        text = canonical_json(probe.get("data"))
        if text not in probed:
            probed[text] = _content_of(probe)
        content = canonical_json({"job": job, "probed": probed[text]} | surroundings)
        keys.append(hashlib.sha256(content.encode()).hexdigest())
    return keys


def _content_of(probe: dict[str, Any]) -> Any:
    """Return the identity of the data of a probe along a pretraining, of which it is no part."""
    try:
        return content_read("probe", probe)
    except ValueError as error:
        return str(error)


def _code_state(folder: Path) -> list[tuple[str, int, int, int, int]]:
    """Return the stamps of all code below a folder."""
    stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*.py"))]
    return [
        (name, each.st_size, each.st_mtime_ns, each.st_ctime_ns, each.st_ino)
        for name, each in stats
    ]
