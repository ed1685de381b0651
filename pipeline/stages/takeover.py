"""Results taken over: made with the same settings from inputs of other signatures and equal bytes.

A conversion whose version was raised, or whose `format:` is written out, may write what it wrote
before. What was made from it is then not made again: its folder becomes the new signature's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.stages.files import read_json, write_json
from pipeline.stages.provenance import ATTEMPTS
from pipeline.stages.run_folder import (
    CONFIG,
    FAILURE,
    JOB,
    JOBS,
    LOCK,
    LOG,
    MANIFEST,
    SET_ASIDE,
    State,
    identity_fault,
    outputs_fault,
)
from pipeline.stages.stage import STAGE_KINDS, Stage, signature_of

OF_A_RUN = {CONFIG, JOB, MANIFEST, FAILURE, LOCK, LOG, JOBS, ATTEMPTS}  # files that stay its own
TAKEN_FROM = "taken_from"  # in a manifest: the folder in which the result was made


def files_read(inputs: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return by role the sha256 of each file that was read; a companion only describes one."""
    return {
        role: {name: sha for name, sha in entry["files"].items() if not name.endswith(".json")}
        for role, entry in inputs.items()
    }


def results_like(run_dir: Path, record: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """Return other finished folders of equal settings, inputs aside, with their manifests."""
    results = []
    for path in sorted(run_dir.parent.glob(f"*/{MANIFEST}")):
        folder = path.parent
        try:
            stored, manifest = read_json(folder / CONFIG), read_json(path)
            names = [name for name in manifest["outputs"] if (folder / name).is_file()]
            sound = not identity_fault(folder, signature_of(stored)) and not outputs_fault(
                folder, manifest, thorough=False, names=names
            )
            if folder != run_dir and sound and stored | {"inputs": {}} == record | {"inputs": {}}:
                results.append((folder, manifest))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a folder edited by hand is no result
    return results


def equal_result(
    run_dir: Path, record: dict[str, Any], inputs: dict[str, Any]
) -> tuple[Path, dict[str, Any]] | None:
    """Return folder and manifest of a result of equal settings from the same bytes, or None.

    Args:
        run_dir: the folder of the stage that is to run.
        record: its `config.json`.
        inputs: signature and digests of what it reads, by role.
    """
    results = results_like(run_dir, record) if inputs else []
    same = (each for each in results if files_read(each[1].get("inputs", {})) == files_read(inputs))
    return next(same, None)


def take_over(run_dir: Path, folder: Path, manifest: dict[str, Any], own: dict[str, Any]) -> None:
    """Make a finished folder's result that of `run_dir` too; `own` is what its manifest has anew.

    Files are shared as hard links where the file system has them. The settings in `job.json` are
    those of the run that made the result.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        top = name.parts[0]
        if path.is_file() and top not in OF_A_RUN and not top.startswith(SET_ASIDE):
            _link(path, run_dir / name)
    if (folder / JOB).is_file():
        settings = read_json(folder / JOB).get("settings")
        write_json(run_dir / JOB, read_json(run_dir / JOB) | {"settings": settings})
    write_json(run_dir / MANIFEST, manifest | own | {TAKEN_FROM: folder.name})
    (run_dir / FAILURE).unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def takeover_lines(stages: Iterable[Stage], states: dict[str, State]) -> list[str]:
    """Return what a plan says of results that are, or may be, taken over instead of made again."""
    lines, open_stages = [], []
    for stage in stages:
        if states[stage.name].status == "done" or not stage.inputs:
            continue
        if any(states[source.name].status != "done" for source in stage.inputs.values()):
            if results_like(stage.run_dir, stage.record):
                open_stages.append(stage.name)
        elif equal := equal_result(stage.run_dir, stage.record, inputs_of(stage)):
            lines.append(
                f"taken over: {stage.name}: {equal[0]} was made from inputs that are byte for byte "
                "the same"
            )
    if open_stages:
        lines.append(
            f"or taken over: {', '.join(open_stages[:3])}{' ..' if open_stages[3:] else ''}: where "
            "an input comes out byte for byte as before, the older result of it is used"
        )
    return lines


def inputs_of(stage: Stage) -> dict[str, Any]:
    """Return signature and digests of what a stage reads of inputs that are done, by role."""
    inputs = {}
    for role, source in stage.inputs.items():
        outputs = read_json(source.run_dir / MANIFEST)["outputs"]
        names = STAGE_KINDS[stage.kind].reads or (source.result.name,)
        files = {name: outputs[name]["sha256"] for name in names if name in outputs}
        inputs[role] = {"signature": source.signature, "files": files}
    return inputs
