"""Where every stage stands, from its run folder, the ledger and SLURM's answers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.executors.slurm.ledger import Submission, latest_tasks, read_ledger
from pipeline.executors.slurm.queue import JobRow, SlurmError, read_accounting, read_queue
from pipeline.plan.plan import Plan
from pipeline.stages.files import last_json_line, read_json
from pipeline.stages.run_folder import (
    ATTEMPTS,
    JOBS,
    LOG,
    MANIFEST,
    METRICS,
    State,
    Status,
    read_state,
)
from pipeline.stages.stage import Stage

SHOWN_METRICS = ("bbox/AP", "segm/AP", "loss", "total_loss")


@dataclass(frozen=True)
class View:
    """What `status` shows of a stage; times in seconds. `left_s` is an estimate from the steps."""

    stage: str
    backbone: str
    status: Status
    reason: str | None = None
    job_id: str = ""
    node: str = ""
    elapsed_s: float | None = None
    left_s: float | None = None
    limit_left_s: float | None = None
    metric: str = ""
    log: str = ""


def read_views(plan: Plan, has_cluster: bool = True) -> tuple[dict[str, View], list[str]]:
    """Return the view of every stage, and what was wrong with SLURM's answers.

    One squeue call; one sacct call if a job is gone that left no result.
    """
    ledger = read_ledger(plan.config.root) if has_cluster else []
    tasks = latest_tasks(ledger)
    rows: dict[str, JobRow] | None = {}
    notes: list[str] = []
    try:
        rows = read_queue(entry.job_name for entry in ledger if entry.job_id and not entry.over)
    except SlurmError as error:
        rows = None
        notes.append(f"{error}; jobs are shown as the run folders know them")
    states = {stage.name: read_state(stage) for stage in plan.stages}
    here = Path.cwd()
    found = {stage.name: tasks.get(str(here / stage.run_dir)) for stage in plan.stages}
    lost = [
        entry.task_id(index)
        for name, (entry, index) in ((name, task) for name, task in found.items() if task)
        if rows is not None and not entry.over and states[name].status in ("missing", "running")
        and entry.task_id(index) not in rows
    ]  # fmt: skip
    accounts: dict[str, JobRow] = {}
    if lost:
        try:
            accounts = read_accounting(lost)
        except SlurmError as error:
            notes.append(f"{error}; without accounting, the run folders say how jobs ended")
    views: dict[str, View] = {}
    for stage in plan.stages:
        view = judge(stage, states[stage.name], found[stage.name], rows, accounts)
        views[stage.name] = _blame_inputs(stage, view, views)
    return views, notes


def judge(
    stage: Stage,
    state: State,
    task: tuple[Submission, int] | None,
    rows: Mapping[str, JobRow] | None,
    accounts: Mapping[str, JobRow],
) -> View:
    """Return where one stage stands; `rows` is None where the queue could not be asked.

    The manifest counts first, then a job that is in the queue, then the failure that the stage
    wrote down, then what SLURM says of a job that is gone.
    """
    view = View(stage.name, stage.backbone, state.status, state.reason)
    view = replace(view, log=str(stage.run_dir / LOG))
    if task is None or state.status == "done":
        return _done(stage, view) if state.status == "done" else _running(stage, view)
    entry, index = task
    view = replace(view, job_id=entry.task_id(index) if entry.job_id else "")
    if entry.over or not entry.job_id:
        why = entry.over or "its submission was not completed"
        return view if state.status == "failed" else replace(view, status="missing", reason=why)
    row = (rows or {}).get(view.job_id)
    if row is not None and row.is_active and not (row.state == "COMPLETING" and state.reason):
        return _active(stage, view, row)
    if state.status == "failed":
        return replace(view, node=str(_last_job(stage).get("node", "")))
    if rows is None:
        return _from_folder(stage, view)
    return _gone(stage, view, row or accounts.get(view.job_id))


def _active(stage: Stage, view: View, row: JobRow) -> View:
    """Return the view of a job that waits or runs."""
    if row.is_queued:
        reason = None if row.reason in ("None", "") else row.reason
        return replace(view, status="queued", reason=reason)
    view = replace(view, status="running", reason=None, node=row.node)
    return _running(stage, replace(view, elapsed_s=row.elapsed_s, limit_left_s=row.left_s))


def _from_folder(stage: Stage, view: View) -> View:
    """Return the view of a submitted stage when the queue cannot be asked."""
    last = _last_job(stage)
    if "started" in last:
        return _running(stage, replace(view, status="running", node=last.get("node", "")))
    return replace(view, status="queued", reason="the queue cannot be asked")


def _gone(stage: Stage, view: View, row: JobRow | None) -> View:
    """Return the view of a job that is over and left neither manifest nor failure."""
    last = _last_job(stage)
    node = (row.node if row else "") or str(last.get("node", ""))
    view = replace(view, node=node, elapsed_s=row.elapsed_s if row else None)
    if row is not None and row.is_active:  # squeue forgets a job a moment before sacct does
        return _active(stage, view, row)
    if not last and (row is None or row.state in ("CANCELLED", "PENDING")):
        word = "was cancelled" if row else "is gone from the queue"
        return replace(view, status="failed", reason=f"job {view.job_id} {word} before it started")
    if row is not None:
        why = f" ({row.reason})" if row.reason not in ("", "None") else ""
        reason = f"job {view.job_id} ended as {row.state}{why} and left no result"
    else:
        reason = f"job {view.job_id} is gone and left no result (killed, or its node died)"
    return replace(view, status="failed", reason=f"{reason}; see {view.log}")


def _running(stage: Stage, view: View) -> View:
    """Add progress to the view of a stage at work."""
    if view.status != "running":
        return view
    entry = last_json_line(stage.run_dir / METRICS) or {}
    last = _last_job(stage)
    elapsed = view.elapsed_s
    if elapsed is None and "started" in last:
        elapsed = time.time() - last["started"]
    return replace(
        view, metric=metric_text(entry), elapsed_s=elapsed, left_s=_left(stage, entry, elapsed)
    )


def _left(stage: Stage, entry: dict[str, Any], elapsed_s: float | None) -> float | None:
    """Return the seconds that the steps ahead take at the rate so far, over all jobs."""
    step, total = entry.get("step"), entry.get("max_steps")
    if not step or not total or elapsed_s is None:
        return None
    spent = elapsed_s
    path = stage.run_dir / ATTEMPTS
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            spent += float(json.loads(line)["wall_time_s"])
    return float(spent * (total - step) / step)


def _done(stage: Stage, view: View) -> View:
    manifest = read_json(stage.run_dir / MANIFEST)
    last = _last_job(stage)
    return replace(
        view,
        job_id=str(last.get("job", "")),
        node=str(last.get("node") or manifest.get("provenance", {}).get("host") or ""),
        elapsed_s=manifest.get("provenance", {}).get("wall_time_s"),
        metric=metric_text(manifest.get("metrics", {})),
    )


def metric_text(entry: Mapping[str, Any]) -> str:
    """Return the step and the number that says most."""
    words = []
    if entry.get("max_steps"):
        words.append(f"step {entry.get('step', 0):.0f}/{entry['max_steps']:.0f}")
    for name in SHOWN_METRICS:
        if isinstance(entry.get(name), int | float):
            words.append(f"{name} {entry[name]:.4g}")
            break
    return "  ".join(words)


def _last_job(stage: Stage) -> dict[str, Any]:
    return last_json_line(stage.run_dir / JOBS, 4096) or {}


def _blame_inputs(stage: Stage, view: View, views: Mapping[str, View]) -> View:
    """Return the view as failed if an input failed: the stage can never run."""
    if view.status in ("done", "running"):
        return view
    for source in stage.inputs.values():
        broken = views[source.name]
        if broken.status == "failed":
            reason = f"needs {source.name}, which failed: {broken.reason}"
            return replace(view, status="failed", reason=reason, log=broken.log)
    return view


def unfinished(views: Mapping[str, View], stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages that neither are done nor have a job that will do them."""
    return [stage for stage in stages if views[stage.name].status in ("missing", "failed")]


def last_lines(path: Path, count: int = 5) -> list[str]:
    """Return the last lines of a log, without reading all of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
