"""Identities as run folders have them, for data that are not on this machine.

A finished run is looked at where its data are not: what could not be read is taken from the run
folder that is equal in all else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.stages.files import read_json
from pipeline.stages.run_folder import CONFIG, MANIFEST
from pipeline.stages.stage import Stage

MISSING = "missing"  # {MISSING: True} stands in an identity for what could not be read


def as_recorded(stages: Iterable[Stage], root: Path) -> list[Stage]:
    """Return the stages; what could not be read for an identity is as a run folder has it.

    That is a folder whose `config.json` is equal in all that could be read: of the stage's name
    rather than another, a finished one rather than one begun, the newest.
    """
    records: dict[str, list[tuple[tuple[str, bool, int], Any]]] = {}
    by_name: dict[str, Stage] = {}
    for stage in stages:
        inputs = {role: by_name[source.name] for role, source in stage.inputs.items()}
        stage = replace(stage, inputs=inputs)  # noqa: PLW2901
        if not _fits(stage.identity, stage.identity, strict=True):
            if stage.kind not in records:
                records[stage.kind] = list(_records(root / stage.kind))
            slug = stage.slug
            by_rank = sorted(
                records[stage.kind], key=lambda each: (each[0][0] == slug, *each[0][1:])
            )
            fitting = (each for _, each in reversed(by_rank) if _fits(stage.record, each))
            if (record := next(fitting, None)) is not None:
                stage = replace(stage, identity=record["config"])  # noqa: PLW2901
        by_name[stage.name] = stage
    return list(by_name.values())


def _records(folder: Path) -> Iterable[tuple[tuple[str, bool, int], Any]]:
    """Yield slug, whether it is finished, and time of the run folders, with their identities."""
    for path in folder.glob(f"*/{CONFIG}"):
        slug, is_done = path.parent.name.rpartition("-")[0], (path.parent / MANIFEST).is_file()
        with contextlib.suppress(OSError, ValueError):
            yield (slug, is_done, path.stat().st_mtime_ns), read_json(path)


def _fits(planned: Any, stored: Any, *, strict: bool = False) -> bool:
    """Return whether two identities are equal, but where the planned one could not be read.

    With `strict` it has to have been read.
    """
    if planned == {MISSING: True}:
        return not strict
    if isinstance(planned, dict) and isinstance(stored, dict):
        return stored.keys() <= planned.keys() and all(  # a part it lacks cannot be read from it
            _fits(value, stored.get(key, MISSING), strict=strict) for key, value in planned.items()
        )
    if isinstance(planned, list) and isinstance(stored, list):
        pairs = zip(planned, stored, strict=False)
        return len(planned) == len(stored) and all(_fits(*pair, strict=strict) for pair in pairs)
    return bool(planned == stored)
