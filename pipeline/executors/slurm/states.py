"""Standings: where every stage stands, from its run folder, the ledger and SLURM's answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.executors.slurm.ledger import Submission, latest_tasks, read_ledger
from pipeline.executors.slurm.queue import JobRow, SlurmError, read_accounting, read_queue
from pipeline.plan.plan import Plan
from pipeline.stages.files import last_json_line, read_json, tail
from pipeline.stages.run_folder import (
    JOBS,
    LOG,
    MANIFEST,
    METRICS,
    State,
    Status,
    attempts_s,
    read_states,
)
from pipeline.stages.stage import Stage

SHOWN_METRICS = ("bbox/AP", "segm/AP", "loss", "total_loss")


@dataclass(frozen=True)
class Standing:
    """Where a stage stands, as `status` shows it; times in seconds.

    `left_s` is an estimate from the steps so far.
    """

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


def read_standings(plan: Plan) -> tuple[dict[str, Standing], list[str]]:
    """Return where every stage stands, and what was wrong with SLURM's answers.

    One squeue call; one sacct call if a job is gone that left no result. A stage that needs a
    failed one counts as failed: it can never run.
    """
    ledger = read_ledger(plan.config.root)
    latest = latest_tasks(ledger)
    rows: dict[str, JobRow] | None = {}
    notes: list[str] = []
    try:
        rows = read_queue(entry.job_name for entry in ledger if entry.job_id and not entry.over)
    except SlurmError as error:
        rows = None
        notes.append(f"{error}; jobs are shown as the run folders know them")
    states = read_states(plan.stages)
    tasks = {stage.name: latest.get(str(stage.run_dir.absolute())) for stage in plan.stages}
    gone = [
        entry.task_id(index)
        for name, (entry, index) in ((name, task) for name, task in tasks.items() if task)
        if rows is not None and not entry.over and states[name].status in ("missing", "running")
        and entry.task_id(index) not in rows
    ]  # fmt: skip
    accounts: dict[str, JobRow] = {}
    if gone:
        try:
            accounts = read_accounting(gone)
        except SlurmError as error:
            notes.append(f"{error}; without accounting, the run folders say how jobs ended")
    standings: dict[str, Standing] = {}
    for stage in plan.stages:
        standing = judge(stage, states[stage.name], tasks[stage.name], rows, accounts)
        if standing.status not in ("done", "running"):
            for broken in (standings[source.name] for source in stage.inputs.values()):
                if broken.status == "failed":
                    reason = f"needs {broken.stage}, which failed: {broken.reason}"
                    standing = replace(standing, status="failed", reason=reason, log=broken.log)
                    break
        standings[stage.name] = standing
    return standings, notes


def judge(
    stage: Stage,
    state: State,
    task: tuple[Submission, int] | None,
    rows: Mapping[str, JobRow] | None,
    accounts: Mapping[str, JobRow],
) -> Standing:
    """Return where one stage stands; `rows` is None where the queue could not be asked.

    The manifest counts first, then a job that is in the queue, then the failure that the stage
    wrote down, then what SLURM says of a job that is gone.
    """
    last = last_json_line(stage.run_dir / JOBS, 4096) or {}
    standing = Standing(stage.name, stage.backbone, state.status, state.reason)
    standing = replace(standing, log=str(stage.run_dir / LOG))
    if task is None or state.status == "done":
        return (_done if state.status == "done" else _with_progress)(stage, standing, last)
    entry, index = task
    standing = replace(standing, job_id=entry.task_id(index) if entry.job_id else "")
    if entry.over or not entry.job_id:
        why = entry.over or "its submission was not completed"
        failed = state.status == "failed"
        return standing if failed else replace(standing, status="missing", reason=why)
    row = (rows or {}).get(standing.job_id)
    if row is not None and row.is_active and not (row.state == "COMPLETING" and state.reason):
        return _active(stage, standing, last, row)
    if state.status == "failed":
        return replace(standing, node=str(last.get("node", "")))
    if rows is not None:
        return _gone(stage, standing, last, row or accounts.get(standing.job_id))
    if "started" in last:
        standing = replace(standing, status="running", node=last.get("node", ""))
    else:
        standing = replace(standing, status="queued", reason="the queue cannot be asked")
    return _with_progress(stage, standing, last)


def _done(stage: Stage, standing: Standing, last: Mapping[str, Any]) -> Standing:
    manifest = read_json(stage.run_dir / MANIFEST)
    made = manifest.get("provenance", {})
    return replace(
        standing,
        job_id=str(last.get("job", "")),
        node=str(last.get("node") or made.get("host") or ""),
        elapsed_s=made.get("wall_time_s"),
        metric=metric_text(manifest.get("metrics", {})),
    )


def _active(stage: Stage, standing: Standing, last: Mapping[str, Any], row: JobRow) -> Standing:
    """Return the standing of a stage whose job waits or runs."""
    if row.is_queued:
        reason = None if row.reason in ("None", "") else row.reason
        return replace(standing, status="queued", reason=reason)
    standing = replace(standing, status="running", reason=None, node=row.node)
    standing = replace(standing, elapsed_s=row.elapsed_s, limit_left_s=row.left_s)
    return _with_progress(stage, standing, last)


def _gone(
    stage: Stage, standing: Standing, last: Mapping[str, Any], row: JobRow | None
) -> Standing:
    """Return the standing of a stage whose job is over and left neither manifest nor failure."""
    if row is not None and row.is_active:  # squeue forgets a job a moment before sacct does
        return _active(stage, standing, last, row)
    if not last and (row is None or row.state in ("CANCELLED", "PENDING")):
        word = "was cancelled" if row else "is gone from the queue"
        reason = f"job {standing.job_id} {word} before it started"
    elif row is not None:
        why = f" ({row.reason})" if row.reason not in ("", "None") else ""
        reason = f"job {standing.job_id} ended as {row.state}{why} and left no result"
        reason += f"; see {standing.log}"
    else:
        reason = f"job {standing.job_id} is gone and left no result (killed, or its node died)"
        reason += f"; see {standing.log}"
    node = (row.node if row else "") or str(last.get("node", ""))
    elapsed = row.elapsed_s if row else None
    return replace(standing, status="failed", reason=reason, node=node, elapsed_s=elapsed)


def _with_progress(stage: Stage, standing: Standing, last: Mapping[str, Any]) -> Standing:
    """Add progress to the standing of a stage at work; the rate is that so far, over all jobs."""
    if standing.status != "running":
        return standing
    entry = last_json_line(stage.run_dir / METRICS) or {}
    elapsed, left = standing.elapsed_s, None
    if elapsed is None and "started" in last:
        elapsed = time.time() - last["started"]
    step, total = entry.get("step"), entry.get("max_steps")
    if step and total and elapsed is not None:
        left = float((elapsed + attempts_s(stage.run_dir)) * (total - step) / step)
    return replace(standing, metric=metric_text(entry), elapsed_s=elapsed, left_s=left)


def metric_text(entry: Mapping[str, Any]) -> str:
    """Return the step and the number that says most."""
    words = []
    if entry.get("max_steps"):
        words.append(f"step {entry.get('step', 0):.0f}/{entry['max_steps']:.0f}")
    for name in SHOWN_METRICS:
        if isinstance(entry.get(name), int | float):
            words.append(f"{name} {entry[name]:.4g}")
            break
    if "doing" in entry:  # beside training, such as an evaluation
        words.append(str(entry["doing"]))
    return "  ".join(words)


def last_lines(path: Path, count: int = 5) -> list[str]:
    """Return the last lines of a log, without reading all of it."""
    lines = tail(path, 8192).decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-count:]
