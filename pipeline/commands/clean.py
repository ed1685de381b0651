"""`clean`: what a pipeline's folder holds that nothing needs, with its size, and its removal.

A run folder is kept that a stage of the config needs, with the changes given and without them, or
of another config that was used with this folder and leads to it still, or a job in the queue, or a
process at work.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipeline.executors.local import late_probes
from pipeline.executors.preflight import ask_worker
from pipeline.executors.slurm.ledger import LEDGER, read_ledger
from pipeline.executors.slurm.queue import read_queue
from pipeline.plan.build import load_plan
from pipeline.plan.place import RUN_FOLDER
from pipeline.plan.plan import CONFIGS, Plan, used_configs
from pipeline.stages.files import read_json, size_of, size_text
from pipeline.stages.run_folder import (
    JOB,
    LOCK,
    MANIFEST,
    is_locked,
    lock,
    read_states,
    read_stripped,
)
from pipeline.stages.stage import STAGE_KINDS

logger = logging.getLogger(__name__)

REMOVED = ".removed"  # ends the name of a folder that is being removed
STATES = ("last.pth", "previous.pth", "damaged.pth")  # of a pretraining, to go on from
NO_PLAN = "no stage of a config needs it"
NO_STATE = "finished; only a `probe:` that comes later would read it"
NO_OPTIMIZER = "finished; the optimiser's state in it, weights stay"


@dataclass(frozen=True)
class Waste:
    """A folder or file that nothing needs, why, and the bytes that its removal frees.

    With `is_part` it is a state in a file, which stays without it.
    """

    path: Path
    why: str
    num_bytes: int
    is_part: bool = False


def clean(plan: Plan, console: Console, yes: bool = False) -> int:
    """Print what nothing needs, with its size; remove it with `yes`.

    Raises:
        ValueError: another config of this folder cannot be read, so what it needs is not known, or
            the queue cannot be asked.
        LockedError: a run is at work.
    """
    root = plan.config.root
    if not yes:
        _show(plan, wastes(plan), console)
        return 0
    with lock(root / "lock"):
        waste, before = wastes(plan), size_of(root)
        for entry in waste:
            if not entry.is_part:
                _remove(entry.path)
        parts = [entry for entry in waste if entry.is_part]
        stripped = _strip([entry.path for entry in parts], yes=True)
        waste = [entry for entry in waste if not entry.is_part or entry.path in stripped]
    left = size_of(root)  # a file without its state is not smaller by exactly the state's size
    freed = size_text(max(before - left, 0))
    console.print(f"{len(waste)} removed, {freed} freed; {size_text(left)} are left")
    return 0


def wastes(plan: Plan) -> list[Waste]:
    """Return what a pipeline's folder holds that nothing needs: run folders, then states.

    A state in a file that cannot be read is left, which is logged.
    """
    root, plans = plan.config.root, [plan, *other_plans(plan)]
    needed = {stage.run_dir.resolve() for each in plans for stage in each.stages}
    needed |= queued_folders(root)
    folders = []
    for folder in sorted(path for kind in STAGE_KINDS for path in (root / kind).glob("*")):
        if folder.name.startswith(".") and folder.name.endswith(REMOVED):
            folders.append(Waste(folder, "its removal was interrupted", size_of(folder)))
        elif (
            RUN_FOLDER.fullmatch(folder.name)
            and folder.is_dir()
            and not folder.is_symlink()
            and folder.resolve() not in needed
            and not is_locked(folder / LOCK)
        ):
            folders.append(Waste(folder, NO_PLAN, size_of(folder)))
    states = dict.fromkeys(_states(plans, queued_folders(root)))
    sizes = _strip([path for path, why in states if why == NO_OPTIMIZER], yes=False)
    return folders + [
        Waste(path, why, sizes.get(path, 0) or size_of(path), path in sizes)
        for path, why in states
        if why != NO_OPTIMIZER or sizes.get(path)
    ]


def other_plans(plan: Plan) -> list[Plan]:
    """Return the plans of the other configs that were used with this folder and lead to it still.

    The config itself without the changes that were given is one of them.

    Raises:
        ValueError: one is gone, or cannot be read as `plan` reads it.
    """
    root, plans, itself = plan.config.root, [], plan.config_file.resolve()
    used = {path: place for path, place in used_configs(root).items() if place != "elsewhere"}
    place = [
        f"{key}={json.dumps(str(getattr(plan.config, key)))}" for key in ("output_dir", "name")
    ]
    for config_file in dict.fromkeys([itself, *used]):
        if config_file == itself and not plan.overrides:
            continue
        try:
            if not config_file.is_file():
                raise ValueError("it is no longer there")
            plans.append(load_plan(config_file, place))
        except ValueError as error:
            first = str(error).splitlines()[0]
            used_by = "used this folder too"
            way_out = "put it back" if used.get(config_file) == "gone" else "fix it"
            way_out += f", or take it out of {root / CONFIGS}"
            if config_file == itself:
                used_by, way_out = "without the changes given it counts too", "fix it"
            raise ValueError(
                f"{config_file}: {used_by}, and what it needs cannot be told ({first}); {way_out}"
            ) from None
    return plans


def queued_folders(root: Path) -> set[Path]:
    """Return the run folders of jobs in the queue, and those that they read.

    Raises:
        SlurmError: the queue cannot be asked, and jobs were submitted.
    """
    if not (root / LEDGER).is_dir():
        return set()
    ledger = [entry for entry in read_ledger(root) if not entry.over]
    rows = read_queue(entry.job_id for entry in ledger if entry.job_id)
    folders: set[Path] = set()
    for entry in ledger:
        for index, name in enumerate(entry.run_dirs):
            row = rows.get(entry.task_id(index)) if entry.job_id else None
            if entry.job_id and (row is None or not row.is_active):
                continue
            folders.add(Path(name).resolve())
            job = Path(name, JOB)
            inputs = read_json(job)["inputs"] if job.is_file() else {}
            folders |= {Path(result).parent.resolve() for result in inputs.values()}
    return folders


def _states(plans: Sequence[Plan], queued: set[Path]) -> Iterable[tuple[Path, str]]:
    """Yield the files with states of finished stages that no plan's probe waits for, and why.

    An output that another folder shares as a hard link frees nothing. One that was stripped has no
    state.
    """
    of_plans = [(plan, read_states(plan.stages)) for plan in plans]
    waiting = [late_probes(plan, states).values() for plan, states in of_plans]
    probed = {stage.run_dir for late in waiting for stage, _ in late}
    for plan, states in of_plans:
        for stage in plan.distinct:
            folder = stage.run_dir
            if (
                states[stage.name].status != "done"
                or folder in probed
                or folder.resolve() in queued
                or is_locked(folder / LOCK)
            ):
                continue
            if stage.kind == "pretrain":
                outputs = read_json(folder / MANIFEST)["outputs"]
                paths = [folder / name for name in STATES if name not in outputs]
                yield from ((path, NO_STATE) for path in paths if path.is_file())
            path = folder / (name := STAGE_KINDS[stage.kind].state_in)
            if path.is_file() and (stat := path.stat()).st_nlink == 1:
                stripped = read_stripped(folder).get(name, {})
                if stat.st_size != stripped.get("size"):
                    yield path, NO_OPTIMIZER


def _strip(paths: list[Path], yes: bool) -> dict[Path, int]:
    """Return the bytes of the state in each output, and with `yes` remove it there.

    What cannot be read or written is left out, and logged.
    """
    kinds = {name: kind for name, kind in STAGE_KINDS.items() if kind.state_in}
    jobs = [
        {
            "run_dir": str(path.parent.absolute()),
            "output": path.name,
            "module": kinds[path.parent.parent.name].module,
            "yes": yes,
        }
        for path in paths
    ]
    sizes = {}
    answers = ask_worker("strip", jobs) if jobs else []
    for path, answer in zip(paths, answers, strict=True):
        if "fault" in answer:
            logger.warning("run_pipeline: %s: left as it is: %s", path, answer["fault"])
        else:
            sizes[path] = int(answer["num_bytes"])
    return sizes


def _remove(path: Path) -> None:
    """Remove a file or folder; a folder is renamed first, so that none is there by half."""
    if path.is_file():
        path.unlink()
        return
    if not path.name.endswith(REMOVED):
        path = path.rename(path.with_name(f".{path.name}{REMOVED}"))
    shutil.rmtree(path)


def _show(plan: Plan, waste: list[Waste], console: Console) -> None:
    """Print what would be removed and what that frees."""
    for entry in waste:
        line = f"{size_text(entry.num_bytes):>9}  {entry.path}  ({entry.why})"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    elsewhere = [
        path for path, place in used_configs(plan.config.root).items() if place == "elsewhere"
    ]
    for path in elsewhere if any(entry.why == NO_PLAN for entry in waste) else ():
        line = (
            f"{path}: was used with this folder and leads to another now, so nothing is kept for it"
        )
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    freed = size_text(sum(entry.num_bytes for entry in waste))
    size = size_text(size_of(plan.config.root))
    rest = "; `clean --yes` removes them" if waste else ""
    text = f"{plan.config.root}: {size}, {freed} of them in {len(waste)} that nothing needs{rest}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
