"""Run folders: `config.json` first, outputs, `manifest.json` last. Only the manifest means done.

The worker (`pipeline.worker`) writes what is in them; its exit codes are here for who starts it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

from pipeline.stages.files import read_json, read_json_lines, sha256_of, write_json
from pipeline.stages.provenance import ATTEMPTS
from pipeline.stages.stage import STAGE_KINDS, Stage, canonical_json, differences, signature_of

CONFIG, JOB, MANIFEST, FAILURE = "config.json", "job.json", "manifest.json", "failure.json"
LOCK, LOG, METRICS, JOBS = "lock", "log.txt", "metrics.jsonl", "jobs.jsonl"
SET_ASIDE = "set-aside"
NEEDS = "needs "  # begins why a stage was not run, another having failed
STRIPPED = "stripped.json"  # size and sha256 of outputs that lost their state to go on from
LATE_PROBE = "probe.json"  # of a pretraining whose `probe:` came when it was finished
HEARTBEAT = "heartbeat"
TRACKING = "tracking"  # a folder: of each tracker its run's id and last step, and its words
TRACKED = ("pretrain", "probe", "finetune")  # kinds of stages; the others measure nothing
LOCK_ATTEMPTS = 10
EXIT_INTERRUPTED, EXIT_LOCKED = 75, 76
Status = Literal["missing", "queued", "running", "done", "failed"]


@dataclass(frozen=True)
class State:
    """Where a stage stands; `reason` says why it failed or cannot run.

    `manifest` is that of a stage that is done.
    """

    status: Status
    reason: str | None = None
    manifest: dict[str, Any] | None = field(default=None, compare=False, repr=False)


def read_states(stages: Sequence[Stage]) -> dict[str, State]:
    """Return the state of every stage of a plan by its name, inputs before what needs them.

    A finished one of which an output is gone is done all the same, its numbers are kept, unless a
    stage that has yet to run reads that output.
    """
    by_folder: dict[Path, State] = {}
    readers: dict[Path, dict[str, str]] = {}
    for stage in reversed(stages):
        state = by_folder[stage.run_dir] = read_state(stage, readers.get(stage.run_dir, {}))
        for source in stage.inputs.values() if state.status != "done" else ():
            names = STAGE_KINDS[stage.kind].reads or (source.result.name,)
            readers.setdefault(source.run_dir, {}).update(dict.fromkeys(names, stage.name))
    return {stage.name: by_folder[stage.run_dir] for stage in stages}


def read_state(stage: Stage, readers: Mapping[str, str] | None = None) -> State:
    """Return the stage's state from its run folder alone.

    A manifest whose outputs have another size does not count as done, nor one of which an output
    is gone that a stage reads: `readers` holds the stage by the output's name. A folder that holds
    another stage's result counts as failed.
    """
    run_dir = stage.run_dir
    if (fault := identity_fault(run_dir, stage.signature)) is not None:
        return State("failed", fault)
    if (run_dir / MANIFEST).exists():
        return _finished(run_dir, readers or {})
    if is_locked(run_dir / LOCK):
        return State("running")
    if (run_dir / FAILURE).exists():
        try:
            return State("failed", str(read_json(run_dir / FAILURE)["reason"]))
        except (ValueError, KeyError):
            return State("failed", f"{run_dir / FAILURE} is damaged; see {run_dir / LOG}")
    return State("missing")


def identity_fault(run_dir: Path, signature: str) -> str | None:
    """Return which file says that a folder is another stage's, renamed or merged by hand, or None.

    A file that is damaged says nothing; who reads it for what it holds finds that out.
    """
    for name in (MANIFEST, CONFIG):
        path = run_dir / name
        try:
            content = read_json(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        if not isinstance(content, dict) or (name == MANIFEST and "outputs" not in content):
            continue
        stored = content.get("signature") if name == MANIFEST else signature_of(content)
        if stored != signature:
            return f"{path}: is of signature {stored}, wanted {signature}; move the folder away"
    return None


def _finished(run_dir: Path, readers: Mapping[str, str]) -> State:
    """Return the state of a stage whose manifest is there."""
    try:
        manifest = read_json(run_dir / MANIFEST)
        outputs, has_numbers = list(manifest["outputs"]), isinstance(manifest["metrics"], dict)
    except ValueError as error:
        return State("missing", str(error))
    except (KeyError, TypeError):
        outputs, has_numbers = [], False
    gone = [name for name in outputs if not (run_dir / name).is_file()] if has_numbers else []
    for name in gone:
        if name in readers:
            why = f"gone since it was made; it will be made again for {readers[name]}"
            return State("missing", f"{run_dir / name}: {why}")
    names = [name for name in outputs if name not in gone]
    if (fault := outputs_fault(run_dir, manifest, thorough=False, names=names)) is not None:
        return State("missing", fault)
    why = "gone; the numbers stay, and nothing that has yet to run reads it"
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    reason = f"{run_dir / gone[0]}{more}: {why}" if gone else None
    return State("done", reason, manifest)


def first_broken(inputs: Iterable[Stage], states: Mapping[str, Any]) -> str | None:
    """Return why a stage can never run, or None when none that it is made from has failed.

    That names the stage which failed itself, however far back it is.
    """
    for source in inputs:
        state = states[source.name]
        if state.status in ("done", "running"):
            continue
        if (broken := first_broken(source.inputs.values(), states)) is not None:
            return broken
        if state.status == "failed":
            return f"{NEEDS}{source.name}, which failed: {state.reason}"
    return None


def is_kept_back(reason: str | None) -> bool:
    """Return whether a stage's reason is that of `first_broken`: it was not run, another failed."""
    return reason is not None and reason.startswith(NEEDS)


def outputs_fault(
    run_dir: Path, manifest: dict[str, Any], thorough: bool, names: Iterable[str] | None = None
) -> str | None:
    """Return how outputs, all or those of `names`, differ from the manifest, or None.

    `thorough` compares sha256 too. One that was stripped is compared with what it was stripped to.
    """
    try:
        outputs, stripped = dict(manifest["outputs"]), read_stripped(run_dir)
        for name in outputs if names is None else names:
            entry = outputs[name]
            path = run_dir / name
            try:
                file = path.stat()
            except OSError:
                file = None
            if file is None or not S_ISREG(file.st_mode):
                return f"{path}: gone since it was made; it will be made again"
            if name in stripped and file.st_size == stripped[name]["size"]:
                entry = stripped[name]
            if file.st_size != entry["size"]:
                size = f"{file.st_size} bytes"
                return f"{path}: {size}, wanted {entry['size']}; it will be made again"
            if thorough and sha256_of(path) != entry["sha256"]:
                return f"{path}: changed since it was made (sha256 differs); it will be made again"
    except (KeyError, AttributeError, TypeError):
        return f"{run_dir / MANIFEST}: not a manifest; the stage will be run again"
    return None


def prepare(stage: Stage, trackers: Mapping[str, Any] | None = None) -> None:
    """Make the run folder of a stage that is not done: `config.json` once, `job.json` each time.

    `trackers` are the settings of those that show it, by name.

    Raises:
        ValueError: the folder holds another config than the wanted one.
    """
    run_dir = stage.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    check_config(stage)
    if (run_dir / MANIFEST).exists():  # here it means that outputs are gone or changed
        drop_changed_outputs(run_dir)
    for name in (MANIFEST, FAILURE):
        (run_dir / name).unlink(missing_ok=True)
    if not (run_dir / CONFIG).exists():
        write_json(run_dir / CONFIG, stage.record)
    kind = STAGE_KINDS[stage.kind]
    job = {
        "stage": stage.kind,
        "name": stage.name,
        "signature": stage.signature,
        "module": kind.module,
        "outputs": list(kind.outputs),
        "settings": stage.settings,
        "inputs": {role: str(source.result.absolute()) for role, source in stage.inputs.items()},
        "reads": list(kind.reads),
    }
    if trackers and stage.kind in TRACKED:
        labels = {key: getattr(stage, key) for key in ("backbone", "task", "probe", "seed")}
        labels = {key: value for key, value in labels.items() if value is not None}
        folder = str(stage.root.absolute())
        job["tracking"] = {"trackers": dict(trackers), "folder": folder, "labels": labels}
    write_json(run_dir / JOB, job)


def check_config(stage: Stage) -> None:
    """Compare what a run folder holds, if there is one, with the wanted config and signature.

    Raises:
        ValueError: they differ, with every difference.
    """
    path = stage.run_dir / CONFIG
    if path.exists():
        stored = read_json(path)
        if canonical_json(stored) != canonical_json(stage.record):
            lines = "; ".join(differences(stored, stage.record))
            raise ValueError(f"{path}: not the config of this plan ({lines}); move the folder away")
    if (fault := identity_fault(stage.run_dir, stage.signature)) is not None:
        raise ValueError(fault)


def drop_changed_outputs(run_dir: Path) -> None:
    """Remove outputs that are not what the manifest says, so that no stage resumes from them."""
    try:
        outputs, stripped = read_json(run_dir / MANIFEST)["outputs"], read_stripped(run_dir)
        for name, entry in outputs.items():
            path, accepted = run_dir / name, (entry, stripped.get(name, entry))
            if path.is_file() and sha256_of(path) not in [each["sha256"] for each in accepted]:
                path.unlink(missing_ok=True)
    except (ValueError, KeyError, AttributeError, TypeError):
        return  # such a manifest names no outputs, and is not taken for done


def set_aside(run_dir: Path) -> Path:
    """Move what a stage made into a folder below its own, from which nothing is resumed."""
    kept = {CONFIG, JOB, LOCK, ATTEMPTS, JOBS, FAILURE}
    entries = [each for each in run_dir.iterdir() if each.name not in kept]
    number = 1 + sum(each.name.startswith(SET_ASIDE) for each in entries)
    place = run_dir / f"{SET_ASIDE}-{number}"
    place.mkdir()
    for entry in entries:
        if not entry.name.startswith(("log", SET_ASIDE)):
            entry.rename(place / entry.name)
    return place


def write_manifest(
    run_dir: Path,
    job: dict[str, Any],
    metrics: dict[str, Any],
    made: dict[str, Any],
    inputs: dict[str, Any] | None = None,
) -> None:
    """Record the outputs with sizes and sha256; from here on the stage is done.

    Args:
        run_dir: the run folder.
        job: what `job.json` holds.
        metrics: the stage's numbers.
        made: the provenance.
        inputs: signature and digests of what was read, by role.

    Raises:
        ValueError: an output that the stage must write is not there.
    """
    outputs = {}
    for pattern in job["outputs"]:
        paths = sorted(run_dir.glob(pattern))
        if not paths:
            raise ValueError(f"{run_dir}: stage {job['stage']} ended without writing {pattern}")
        for path in paths:
            name = path.relative_to(run_dir).as_posix()
            outputs[name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    content = {"metrics": metrics, "outputs": outputs, "inputs": inputs or {}, "provenance": made}
    head = {"stage": job["stage"], "signature": job["signature"]}
    write_json(run_dir / MANIFEST, head | content)
    (run_dir / FAILURE).unlink(missing_ok=True)


def read_stripped(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of the outputs that were stripped, by name."""
    path = run_dir / STRIPPED
    return dict(read_json(path)) if path.is_file() else {}


def strip_output(run_dir: Path, name: str, write: Callable[[Path, Path], object]) -> None:
    """Put what `write(path, target)` makes of an output in its place.

    The manifest stays as it is, so that the stage is the same. What the output becomes is recorded
    before it takes its place: whenever this ends, it is one that counts as done.

    Raises:
        ValueError: the output is not what its manifest says.
        LockedError: another process is at work in the folder.
    """
    path, target = run_dir / name, run_dir / f".{name}.stripped"
    with lock(run_dir / LOCK):
        manifest = read_json(run_dir / MANIFEST)
        if (fault := outputs_fault(run_dir, manifest, thorough=True, names=[name])) is not None:
            raise ValueError(fault)
        try:
            write(path, target)
            with target.open("rb+") as file:
                os.fsync(file.fileno())
            entry = {"size": target.stat().st_size, "sha256": sha256_of(target)}
            write_json(run_dir / STRIPPED, read_stripped(run_dir) | {name: entry})
            target.replace(path)
        finally:
            target.unlink(missing_ok=True)


def attempts_s(run_dir: Path) -> float:
    """Return the seconds that the attempts at a stage took which are over."""
    return sum(float(line.get("wall_time_s", 0)) for line in read_json_lines(run_dir / ATTEMPTS))


class LockedError(Exception):
    """Another process holds the lock."""


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; it is released when the process ends, however it ends.

    Raises:
        LockedError: another process holds it; the text says which.
    """
    with path.open("a+", encoding="utf-8") as file:
        for attempt in range(LOCK_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if attempt == LOCK_ATTEMPTS - 1:
                    file.seek(0)
                    raise LockedError(file.read().strip() or "unknown process") from None
                time.sleep(0.1)  # somebody may only be looking whether it is held
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock."""
    try:
        with path.open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
