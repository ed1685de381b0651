"""Results that are there: used under another name, taken over, or made again and why.

A result is taken over that was made with the same settings from inputs of other signatures and
equal bytes. A conversion whose version was raised, or whose `format:` is written out, may write
what it wrote before: what was made from it is then not made again, its folder becomes the new
signature's.
"""

from __future__ import annotations

import os
import re
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
    TRACKING,
    State,
    identity_fault,
    outputs_fault,
)
from pipeline.stages.stage import (
    CHECKPOINT,
    DATA,
    RULE,
    SIGNATURE_DIGITS,
    STAGE_KINDS,
    TABLES,
    Stage,
    canonical_json,
    differences,
    signature_of,
)

NAMES = ("before", "now")
MAX_CHANGES = 3
MAX_LENGTH = 160
MAX_STAGES = 6
OF_A_RUN = {CONFIG, JOB, MANIFEST, FAILURE, LOCK, LOG, JOBS, ATTEMPTS, TRACKING}  # stay its own
TAKEN_FROM = "taken_from"  # in a manifest: the folder in which the result was made


def shared_lines(stages: Iterable[Stage], states: dict[str, State]) -> list[str]:
    """Return a line for each stage that another of the same signature stands for, a few by name."""
    lines = [
        f"{stage.name}: {'done' if states[stage.name].status == 'done' else 'to be done'} as "
        f"{stage.same_as}, whose inputs and settings are equal"
        for stage in stages
        if stage.same_as is not None
    ]
    hidden = len(lines) - MAX_STAGES
    more = [f"and {hidden} more stages that are done once for two names"] if hidden > 0 else []
    return lines[:MAX_STAGES] + more


def changed_lines(stages: Iterable[Stage], states: dict[str, State]) -> list[str]:
    """Return one line for every reason that stages with an older result run again, and which."""
    because: dict[str, list[str]] = {}
    for stage in stages:
        state = states[stage.name]
        damaged = state.reason if state.status == "missing" else None
        if state.status != "done" and (why := damaged or why_again(stage)):
            because.setdefault(why, []).append(stage.name)
    lines = []
    for why, names in because.items():
        more = f" and {len(names) - MAX_STAGES} more" if len(names) > MAX_STAGES else ""
        lines.append(f"again: {', '.join(names[:MAX_STAGES])}{more}: {why}")
    return lines


def kept_lines(stages: Iterable[Stage], states: dict[str, State]) -> list[str]:
    """Return a line for every finished stage of which an output is gone that nothing needs."""
    reasons = {stage.name: states[stage.name] for stage in stages}
    return [
        f"kept: {name}: {state.reason}"
        for name, state in reasons.items()
        if state.status == "done" and state.reason
    ]


def why_again(stage: Stage) -> str | None:
    """Return how the stage differs from its newest finished result, or None without one."""
    folder = newest_folder(stage, MANIFEST)
    return None if folder is None else how_it_differs(stage, folder)


def how_it_differs(stage: Stage, folder: Path) -> str | None:
    """Return how the stage differs from what another run folder of it was made from."""
    try:
        stored = read_json(folder / CONFIG)
        if "version" in stored and (rule := stored.get("rule", 1)) != RULE:
            versions = _change(f"version {rule}", RULE)
            kept = f"older results under {stage.root} are kept and not used"
            return f"the rule of identity changed ({versions}); {kept}"
        sets_before = by_name(read_json(folder / JOB)["settings"], stored["config"].get(DATA))
        text = "; ".join(_changes(stored, sets_before, stage))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None  # a folder edited by hand tells nothing
    return f"{text[:MAX_LENGTH]}.." if len(text) > MAX_LENGTH else text or None


def newest_folder(stage: Stage, file: str) -> Path | None:
    """Return the run folder of this name and another signature in which a file is the newest.

    It is `manifest.json` of finished ones, `job.json` of attempts.
    """
    name = re.compile(rf"{re.escape(stage.slug)}-[0-9a-f]{{{SIGNATURE_DIGITS}}}")
    results = [
        (path.stat().st_mtime_ns, path.parent)
        for path in stage.run_dir.parent.glob(f"{stage.slug}-*/{file}")
        if name.fullmatch(path.parent.name) and path.parent.name != stage.run_dir.name
    ]
    return max(results)[1] if results else None


def _changes(
    stored: dict[str, Any], sets_before: dict[str, dict[str, Any]], stage: Stage
) -> list[str]:
    """Return how a stored `config.json` differs; inputs count only where nothing else does."""
    lines = []
    if stored["version"] != stage.record["version"]:
        versions = _change(stored["version"], stage.record["version"])
        lines.append(f"what {stage.kind} computes has changed (version: {versions})")
    before, now = dict(stored["config"]), dict(stage.identity)
    before.pop(DATA, None)
    lines += _data_changes(sets_before, by_name(stage.settings, now.pop(DATA, None)))
    if before.pop(CHECKPOINT, None) != now.pop(CHECKPOINT, None):
        lines.append(f"checkpoint {stage.settings.get('checkpoint')} has another content")
    if before.pop(TABLES, None) != now.pop(TABLES, None):
        lines.append("the tables of checkpoint families have changed")
    settings = differences(before, now, names=NAMES)
    lines += settings[:MAX_CHANGES]
    if len(settings) > MAX_CHANGES:
        lines.append(f"and {len(settings) - MAX_CHANGES} more settings")
    if lines:
        return lines
    inputs = stored["inputs"]
    if inputs.keys() != stage.inputs.keys():
        return [f"inputs: {_change(sorted(inputs), sorted(stage.inputs))}"]
    return [
        f"made from another {source.name}"
        for role, source in sorted(stage.inputs.items())
        if inputs[role] != source.signature
    ]


def data_parts(content: Any) -> dict[str, dict[str, Any]]:
    """Return the parts of an identity of data that have a digest, by the keys that lead to them.

    Example:
        >>> images = {"by": "content", "num_files": 9, "digest": "0f"}
        >>> data_parts({"train": {"images": images}}) == {"train images": images}
        True
    """
    parts: dict[str, dict[str, Any]] = {}
    entries = dict(enumerate(content, 1)) if isinstance(content, list) else content
    for key, value in entries.items() if isinstance(entries, dict) else ():
        if isinstance(value, dict) and "digest" in value:
            parts[str(key)] = value
        else:
            parts |= {f"{key} {name}": part for name, part in data_parts(value).items()}
    return parts


def _data_changes(
    sets_before: dict[str, dict[str, Any]], sets_now: dict[str, dict[str, Any]]
) -> list[str]:
    """Return a line for every data set that is not what it was, and for others in its place."""
    lines = []
    for name in sorted(sets_before.keys() & sets_now.keys()):
        if canonical_json(sets_before[name]) != canonical_json(sets_now[name]):
            what = _what(sets_before[name], sets_now[name])
            lines.append(f"data set {name} has changed{what}")
    contents = [sorted(map(canonical_json, sets.values())) for sets in (sets_before, sets_now)]
    if sets_before.keys() != sets_now.keys() and contents[0] != contents[1]:
        lines.append(f"data sets: {_change(sorted(sets_before), sorted(sets_now))}")
    return lines


def by_name(settings: dict[str, Any], content: Any) -> dict[str, dict[str, Any]]:
    """Return the identities of a stage's data sets by the names that its settings give them."""
    if content is None:
        return {}
    if "data" in settings:
        return {settings["data"]["name"]: content}
    names = settings["detectron2"]["DATASETS"]
    return {
        name: entry
        for use, entries in content.items()
        for name, entry in zip(names[use], entries, strict=True)
    }


def _what(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return which parts of a data set changed, where its identity tells."""
    changes = differences(before.get("settings", {}), now.get("settings", {}), names=NAMES)
    before, now = data_parts(before), data_parts(now)
    for name in (name for name in before | now if before.get(name) != now.get(name)):
        sides = before.get(name, {}), now.get(name, {})
        for key, words in (("num_files", "{} files"), ("by", "known by {}")):
            values = [words.format(side.get(key, "no")) for side in sides]
            if values[0] != values[1]:
                changes.append(f"{name}: {_change(*values)}")
                break
        else:
            changes.append(name)
    return f" ({', '.join(changes)})" if changes else ""


def _change(before: Any, now: Any) -> str:
    return f"{NAMES[0]} {before}, {NAMES[1]} {now}"


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


def take_over(run_dir: Path, folder: Path, manifest: dict[str, Any], new: dict[str, Any]) -> None:
    """Make a finished folder's result that of `run_dir` too; `new` is what its manifest has anew.

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
    write_json(run_dir / MANIFEST, manifest | new | {TAKEN_FROM: folder.name})
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
