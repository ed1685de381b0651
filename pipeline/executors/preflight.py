"""The check before the start, by a worker that asks all stages whether they can run.

Answers are kept below the plan's folder as long as everything they depend on is as it was, so that
`plan` can ask what `run` asks and need no second for it. An answer counts for the same job over the
same files, by the same code and packages, on the same machine. Only clean answers are kept: a fault
is looked for again each time. `run` trusts none of them, it asks anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from pipeline.executors.gpus import visible_gpus
from pipeline.plan.compatibility import misfits
from pipeline.plan.data_identity import PUBLISHED, content_read, copies_in_test
from pipeline.plan.overrides import told_by_config
from pipeline.plan.plan import Plan
from pipeline.stages.files import read_json, write_text
from pipeline.stages.provenance import PACKAGES, version_of, with_this_code
from pipeline.stages.run_folder import State, check_config
from pipeline.stages.stage import CHECKPOINT, DATA, STAGE_KINDS, WORLD_SIZE, Stage, canonical_json
from pretrain.config.data import DataConfig

CHECKED = "checked.json"  # below the plan's folder
MAX_KEPT = 1_000
CODE = Path(__file__).resolve().parents[2]
NOTE = "note: "  # begins what stops nothing
MAX_NOTES = 20


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


def check_before_start(
    plan: Plan, states: dict[str, State], *, here: bool = True, trust_kept: bool = False
) -> list[str]:
    """Ask every stage that still has to run whether it can: data, images, configs, checkpoints.

    Returns what stops nothing but should be known, such as boxes that training leaves out. `here`
    asks too whether this machine has the GPUs; elsewhere the cluster knows. `trust_kept` takes
    earlier answers for what has not changed since.

    Raises:
        ValueError: one line for every fault.
    """
    for stage in plan.stages:
        check_config(stage)
    waiting = [stage for stage in plan.stages if states[stage.name].status != "done"]
    jobs: dict[str, dict[str, Any]] = {}
    askers: dict[str, list[Stage]] = {}
    for stage in waiting:
        settings = stage.settings | ({"seed": 0} if stage.seed is not None else {})
        job = {"kind": stage.kind, "settings": settings, "here": here}
        job["module"] = STAGE_KINDS[stage.kind].module
        job["num_processes"] = stage.identity.get(WORLD_SIZE, 1)
        job["content"] = {key: stage.identity.get(key) for key in (DATA, CHECKPOINT)}
        text = json.dumps(job, sort_keys=True)  # seeds and backbones share one check
        jobs.setdefault(text, job | {"inputs": []})
        if (roles := sorted(stage.inputs)) not in jobs[text]["inputs"]:
            jobs[text]["inputs"].append(roles)
        askers.setdefault(text, []).append(stage)
    answers = dict(zip(jobs, _answers(plan, list(jobs.values()), trust_kept), strict=True))
    told = partial(told_by_config, plan.config_file, plan.config)
    faults = [told(askers[text][0], line) for text in jobs for line in answers[text].faults]
    of_stage = {stage.name: answers[text] for text in jobs for stage in askers[text]}
    faults += [told(stage, line) for stage in waiting for line in _misfits(stage, of_stage)]
    copies = _copies(waiting)
    faults += [line for line, is_published in copies.items() if not is_published]
    if here and any(WORLD_SIZE in stage.identity for stage in waiting):
        faults += _more_than_here(plan)
    if faults:
        raise ValueError("\n".join(dict.fromkeys(faults)))
    said = [line for each in answers.values() for line in each.notes] + list(copies)
    said += [told(askers[text][0], line) for text in jobs for line in answers[text].remarks]
    notes = list(dict.fromkeys(NOTE + line for line in said))
    hidden = len(notes) - MAX_NOTES
    more = [f"{NOTE}{hidden} more; tools/check_data.py shows them all"] if hidden > 0 else []
    return notes[:MAX_NOTES] + more


def _more_than_here(plan: Plan) -> list[str]:
    """Return what a pretraining asks for beyond this machine; without GPUs it is on CPUs."""
    asked = plan.config.resources.of("pretrain")
    limits = {"nodes": (asked.nodes, 1, "this is one machine")}
    if asked.gpus > 1 and (num_gpus := len(visible_gpus())):
        limits["gpus"] = asked.gpus, num_gpus, f"GPUs that this machine shows: {num_gpus}"
    return [
        f"{plan.config_file}: resources.pretrain.{key} is {number}, but {what}, and results depend "
        f"on the number of processes; set it to {most}, or run with --executor slurm"
        for key, (number, most, what) in limits.items()
        if number > most
    ]


def _copies(stages: list[Stage]) -> dict[str, bool]:
    """Return a line for each probe's set of which images are trained on too: is it published?"""
    lines = {}
    for stage in stages:
        if stage.kind == "probe":
            data = DataConfig.model_validate(stage.settings["data"])
            if line := copies_in_test(data, stage.identity[DATA]):
                lines[line] = data.name in PUBLISHED
    return lines


def _answers(plan: Plan, jobs: list[dict[str, Any]], trust_kept: bool) -> list[Answer]:
    """Return the answers to the jobs, kept ones where they may be; keep the others."""
    if not jobs:
        return []
    keys = keys_of(jobs)
    kept = read_answers(plan.config.root) if trust_kept else {}
    open_jobs = {key: job for key, job in zip(keys, jobs, strict=True) if key not in kept}
    if open_jobs:
        answers = ask_worker("check", list(open_jobs.values()))
        new = dict(zip(open_jobs, TypeAdapter(list[Answer]).validate_python(answers), strict=True))
        keep_answers(plan.config.root, new)
        kept |= new
    return [kept[key] for key in keys]


def ask_worker(command: str, jobs: list[dict[str, Any]]) -> Any:
    """Return what a worker answers to the jobs: one answer each.

    Raises:
        ValueError: it broke.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, answers = Path(folder) / "jobs.json", Path(folder) / "answers.json"
        path.write_text(json.dumps(jobs), encoding="utf-8")
        child = subprocess.run(
            [sys.executable, "-m", "pipeline.worker", command, str(path), str(answers)],
            capture_output=True,
            text=True,
            check=False,
            env=with_this_code(os.environ),
        )
        if child.returncode != 0:
            last = (child.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"the worker's {command} broke: {last}")
        return read_json(answers)


def _misfits(stage: Stage, answers: dict[str, Answer]) -> list[str]:
    """Return where a task contradicts the weights it will get, as far as these are known."""
    weights = stage.inputs.get("weights")
    if weights is None:
        return []
    demands: dict[str, Any] = {}
    if weights.name in answers:
        demands = answers[weights.name].demands
    else:  # they are there: their companion says it
        with contextlib.suppress(OSError, ValueError, KeyError):
            demands = read_json(weights.result.with_suffix(".json"))["detectron2"]
    return misfits(stage, demands)
