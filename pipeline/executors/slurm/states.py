"""Standings: where every stage stands, from its run folder, the ledger and SLURM's answers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.schema import REPORT
from pipeline.executors.slurm.job_states import ADVICE, is_held
from pipeline.executors.slurm.ledger import LEDGER, Submission, latest_tasks, read_ledger
from pipeline.executors.slurm.queue import JobRow, SlurmError, read_accounting, read_queue
from pipeline.plan.length import length_of
from pipeline.plan.plan import Plan
from pipeline.stages.files import last_json_line, tail
from pipeline.stages.provenance import attempts_at
from pipeline.stages.run_folder import (
    HEARTBEAT,
    JOBS,
    LOG,
    METRICS,
    State,
    Status,
    attempts_s,
    first_broken,
    read_states,
)
from pipeline.stages.stage import Stage

SILENT_S = 600.0  # ten heartbeats, and more than clocks of two hosts differ
MAX_NAMED = 5
SHOWN_METRICS = ("bbox/AP", "segm/AP", "loss", "total_loss")


@dataclass(frozen=True)
class Standing:
    """Where a stage stands, as `status` shows it; times in seconds.

    `left_s` is an estimate from the steps so far; `gpus` are those that its processes see, as
    CUDA_VISIBLE_DEVICES names them.
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
    gpus: str = ""


def read_standings(plan: Plan) -> tuple[dict[str, Standing], list[str]]:
    """Return where every stage stands, and what was wrong with SLURM's answers or is outdated.

    One squeue call; one sacct call if a job is gone that left no result. A stage that needs a
    failed one counts as missing, though its job may be in the queue: it can never run.
    """
    ledger = read_ledger(plan.config.root)
    latest = latest_tasks(ledger)
    rows: dict[str, JobRow] | None = {}
    notes: list[str] = []
    try:
        rows = read_queue(entry.job_id for entry in ledger if entry.job_id and not entry.over)
        notes += outdated_lines(outdated_tasks(plan, ledger, rows))
    except SlurmError as error:
        rows = None
        notes.append(f"{error}; jobs are shown as the run folders know them")
    states = read_states(plan.stages)
    tasks = {stage.name: latest.get(str(stage.run_dir.absolute())) for stage in plan.stages}
    gone = [
        entry.task_id(index)
        for name, (entry, index) in ((name, task) for name, task in tasks.items() if task)
        if rows is not None and entry.job_id and not entry.over
        and states[name].status in ("missing", "running") and entry.task_id(index) not in rows
    ]  # fmt: skip
    accounts: dict[str, JobRow] = {}
    if gone:
        try:
            accounts = read_accounting(gone)
        except SlurmError as error:
            notes.append(f"{error}; without accounting, the run folders say how jobs ended")
    standings: dict[str, Standing] = {}
    for stage in plan.stages:
        task = tasks[stage.name]
        standing = judge(stage, states[stage.name], task, rows, accounts)
        if standing.status != "failed" and not standing.metric:
            standing = replace(standing, metric=length_of(stage))  # to be run
        if task and standing.job_id:
            standing = _with_log_of_slurm(plan.config.root, stage, standing, task[0])
        sources = [standings[source.name] for source in stage.inputs.values()]
        broken = first_broken(stage.inputs.values(), standings)
        if broken is not None and standing.status not in ("done", "running"):
            log = next(source.log for source in sources if source.status != "done")
            standing = replace(standing, status="missing", reason=broken, log=log)
        standings[stage.name] = standing
    if rows is not None:
        notes += report_lines(ledger, rows, standings)
    return standings, notes


def report_lines(
    ledger: Iterable[Submission], rows: Mapping[str, JobRow], standings: Mapping[str, Standing]
) -> list[str]:
    """Return the line that says that no report will come, if that is so."""
    entries = [entry for entry in ledger if entry.kind == REPORT and not entry.over]
    row = rows.get(entries[-1].job_id) if entries else None
    if row is not None and not row.is_over:
        return []
    if row is not None and row.phase == "failed":
        return [f"the report's job {row.job_id} ended as {row.state}; run makes it again"]
    at_work = [each for each in standings.values() if each.status in ("queued", "running")]
    if at_work and at_work[0].job_id:
        return ["the queue has no report of what is at work there; run submits one"]
    return []


def outdated_tasks(
    plan: Plan, ledger: Iterable[Submission], rows: Mapping[str, JobRow]
) -> dict[str, str]:
    """Return the stage's name by job id of what is in the queue and no job of the plan's stages.

    Such jobs are of a config as it was before, or have a newer job of the same stage.
    """
    ledger = list(ledger)
    latest = latest_tasks(ledger)
    places = {str(stage.run_dir.absolute()) for stage in plan.stages}
    outdated = {}
    for entry in ledger:
        if entry.kind != REPORT and entry.job_id and not entry.over:
            for index, run_dir in enumerate(entry.run_dirs):
                row = rows.get(entry.task_id(index))
                newest = run_dir in places and latest[run_dir] == (entry, index)
                if row is not None and row.is_active and not newest:
                    outdated[row.job_id] = entry.stages[index]
    return outdated


def outdated_lines(outdated: Mapping[str, str]) -> list[str]:
    """Return the line that names outdated jobs, if there are any."""
    if not outdated:
        return []
    named = [f"{name} is job {job_id}" for job_id, name in list(outdated.items())[:MAX_NAMED]]
    more = f" and {len(outdated) - MAX_NAMED} more" if len(outdated) > MAX_NAMED else ""
    return [
        f"{len(outdated)} jobs in the queue are not of this plan as it is now "
        f"({', '.join(named)}{more}); end them with cancel --outdated or run --replace"
    ]


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
        made = state.manifest  # of a stage that is done
        return (
            _with_progress(stage, standing, last) if made is None else _done(standing, last, made)
        )
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


def _done(standing: Standing, last: Mapping[str, Any], manifest: Mapping[str, Any]) -> Standing:
    made = manifest.get("provenance", {})
    return replace(
        standing,
        job_id=str(last.get("job", "")),
        node=str(last.get("node") or made.get("host") or ""),
        elapsed_s=made.get("wall_time_s"),
        metric=metric_text(manifest.get("metrics", {})),
        gpus=str(made.get("visible_gpus", "")),
    )


def _active(stage: Stage, standing: Standing, last: Mapping[str, Any], row: JobRow) -> Standing:
    """Return the standing of a stage whose job waits or runs."""
    if row.is_queued:
        reason = None if row.reason in ("None", "") else row.reason
        if is_held(row.state, row.reason):
            reason = f"{reason or row.state}: held; scontrol release {row.job_id}"
        return replace(standing, status="queued", reason=reason)
    silent = _silent_s(stage, row) if row.state == "RUNNING" else 0.0
    reason = None
    if silent > SILENT_S:
        reason = (
            f"no sign of life for {silent / 60:.0f} minutes; if {row.node} died and is back, "
            f"scontrol requeue {row.job_id} goes on from what was saved"
        )
    standing = replace(standing, status="running", reason=reason, node=row.node)
    standing = replace(standing, elapsed_s=row.elapsed_s, limit_left_s=row.left_s)
    return _with_progress(stage, standing, last)


def _silent_s(stage: Stage, row: JobRow) -> float:
    """Return how long no heartbeat came; not before the job itself began."""
    elapsed = float(row.elapsed_s or 0)
    try:
        return min(elapsed, time.time() - (stage.run_dir / HEARTBEAT).stat().st_mtime)
    except OSError:
        return elapsed


def _with_log_of_slurm(root: Path, stage: Stage, standing: Standing, entry: Submission) -> Standing:
    """Return the standing with SLURM's own output for a log, where the job wrote no other.

    A job that never started wrote none at all, and there is none to see.
    """
    if standing.status not in ("failed", "running"):
        return standing
    if (last_json_line(stage.run_dir / JOBS, 4096) or {}).get("job") == standing.job_id:
        return standing
    folder = root / LEDGER / entry.token
    names = (f"{standing.job_id}_0_log.out", f"batch-{standing.job_id}.log")
    for path in (folder / name for name in names):
        if path.exists() and path.stat().st_size > 0:
            reason = standing.reason and standing.reason.replace(standing.log, str(path))
            return replace(standing, log=str(path), reason=reason)
    if standing.reason and not Path(standing.log).exists():
        return replace(standing, reason=standing.reason.replace(f"; see {standing.log}", ""))
    return standing


def _gone(
    stage: Stage, standing: Standing, last: Mapping[str, Any], row: JobRow | None
) -> Standing:
    """Return the standing of a stage whose job is over and left neither manifest nor failure."""
    if not last and (row is None or row.state in ("CANCELLED", "PENDING")):
        word = "was cancelled" if row else "is gone from the queue"
        reason = f"job {standing.job_id} {word} before it started"
    elif row is None or row.is_active:  # accounting may call what is gone from the queue RUNNING
        reason = f"job {standing.job_id} is gone and left no result (killed, or its node died)"
        reason += f"; see {standing.log}"
    elif row.phase == "unknown":
        reason = f"job {standing.job_id} is in state {row.state}, which is not known here; "
        reason += f"see scontrol show job {standing.job_id}; run replaces it"
    else:
        words = [ADVICE.get(row.state, ""), "" if row.reason == "None" else row.reason]
        why = "; ".join(word for word in words if word)
        reason = f"job {standing.job_id} ended as {row.state}{f' ({why})' if why else ''}"
        reason += f" and left no result; see {standing.log}"
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
    attempts = attempts_at(stage.run_dir) or [{}]
    standing = replace(standing, gpus=str(attempts[-1].get("visible_gpus", "")))
    return replace(standing, metric=metric_text(entry), elapsed_s=elapsed, left_s=left)


def metric_text(entry: Mapping[str, Any]) -> str:
    """Return the step and the number that says most."""
    words = []
    if entry.get("max_steps"):
        words.append(f"step {entry.get('step', 0):.0f}/{entry['max_steps']:.0f}")
        words += [] if "doing" in entry else ["training"]
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
