"""`run`, `plan` and `cancel` on a SLURM cluster."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commands.local import show_report, tell
from pipeline.config.schema import REPORT
from pipeline.executors.local import late_probe_lines
from pipeline.executors.preflight import check_before_start
from pipeline.executors.slurm.arrays import (
    job_groups,
    missing_images,
    resource_faults,
    without_gpus,
)
from pipeline.executors.slurm.environment import environment_lines
from pipeline.executors.slurm.gpu_hours import gpu_hours
from pipeline.executors.slurm.ledger import LEDGER, Submission, close_submissions
from pipeline.executors.slurm.limits import max_array_here
from pipeline.executors.slurm.plan_file import PLAN, is_report_of
from pipeline.executors.slurm.queue import JobRow, SlurmError, read_queue
from pipeline.executors.slurm.sbatch import (
    dependency_words,
    options_of,
    sbatch_parameters,
    sbatch_text,
)
from pipeline.executors.slurm.states import outdated_tasks, read_standings
from pipeline.executors.slurm.submit import accepted_groups, cancel_jobs, settle, submit
from pipeline.plan.length import length_lines
from pipeline.plan.plan import Plan, record_stages
from pipeline.report.collect import all_states
from pipeline.report.remarks import (
    conversion_remarks,
    other_origins,
    probe_remarks,
    read_manifests,
)
from pipeline.report.write import make_report
from pipeline.stages.run_folder import State, lock
from pipeline.stages.staleness import changed_lines, kept_lines, shared_lines, takeover_lines

CANCEL_WAIT_S = 120.0
POLL_S = 1.0


def run(plan: Plan, console: Console, replace: bool = False) -> int:
    """Submit what is neither done nor in the queue, and return; the jobs go on by themselves.

    `replace` cancels what is in the queue and no longer of this plan.
    """
    plan.config.root.mkdir(parents=True, exist_ok=True)
    with lock(plan.config.root / "lock"):
        record_stages(plan)
        ledger, rows = settle(plan.config.root)
        if replace:
            _cancel(list(outdated_tasks(plan, ledger, rows)), console)
        standings, notes = read_standings(plan)
        if blind := [note for note in notes if note.startswith("squeue")]:
            raise SlurmError("; ".join(blind))  # a job might be submitted twice
        waiting = [s for s in plan.distinct if standings[s.name].status in ("missing", "failed")]
        counts = Counter(standings[stage.name].status for stage in plan.distinct)
        summary = ", ".join(
            f"{counts[status]} {status}" for status in ("done", "running", "queued")
        )
        console.print(f"{plan.config.name}: {len(plan.distinct)} stages, {summary}")
        tell(console, notes)
        reports = [entry for entry in ledger if entry.kind == REPORT]
        if counts["done"] == len(plan.distinct):
            _clear(plan, reports, rows, set())  # else one of an earlier plan may come after it
            make_report(plan)
            show_report(plan, console)
            return 0
        folder = plan.config.root / LEDGER
        current = [e for e in reports if is_report_of(plan, folder / e.token / PLAN)]
        told = [rows[entry.job_id] for entry in current if entry.job_id in rows]
        if not waiting and any(row.is_active for row in told):
            console.print("nothing to submit; everything that is left is in the queue")
            return 0
        states = {name: State(standing.status) for name, standing in standings.items()}
        remarks = check_before_start(plan, states, here=False)  # first, as in `local.run`
        tell(console, shared_lines(plan.stages, states))
        tell(console, changed_lines(waiting, states) + remarks)
        tell(console, conversion_remarks(plan, read_manifests(plan, standings)))
        submitted = {
            standing.stage: standing.job_id
            for standing in standings.values()
            if standing.status in ("queued", "running") and standing.job_id
        }
        groups, left = accepted_groups(plan, waiting, submitted)
        tell(console, without_gpus(groups, os.environ))
        _clear(plan, reports, rows, {standings[stage.name].job_id for stage in waiting})
        for group, entry in submit(plan, groups):
            what = f"{len(group.stages)} stages" if group.stages else "after all others"
            line = f"  job {entry.job_id}: {group.name}, {what}"
            console.print(line, markup=False, highlight=False)
    num_stages = sum(len(group.stages) for group in groups)
    console.print(
        f"{num_stages} stages in {len(groups)} jobs submitted; they need this command no more.\n"
        "see: tools/run_pipeline.py status --watch --config-file "
        f"{plan.config_file}",
        soft_wrap=True,
        markup=False,
    )
    tell(console, [left] if left else [])
    return 0


def _clear(plan: Plan, reports: list[Submission], rows: dict[str, JobRow], stale: set[str]) -> None:
    """Cancel what new jobs take the place of: tasks that can never start, waiting reports."""
    stale |= {entry.job_id for entry in reports}
    cancel_jobs(sorted(name for name in stale if name in rows and not rows[name].is_over))
    close_submissions(plan.config.root, reports, "replaced by the report of a later run")


def show_plan(plan: Plan, console: Console) -> int:
    """Print the arrays, what they wait for, the exact sbatch text, and the GPU hours.

    Raises:
        ValueError: whatever `run` would refuse before it submits.
    """
    states = all_states(plan)
    waiting = [stage for stage in plan.distinct if states[stage.name].status != "done"]
    notes = read_standings(plan)[1] if (plan.config.root / LEDGER).is_dir() else []
    groups = job_groups(waiting, plan.config.resources, {}, max_array_here())
    if faults := [*resource_faults(plan), *missing_images(groups)]:
        raise ValueError("\n".join(faults))
    remarks = check_before_start(plan, states, here=False, trust_kept=True)
    table = Table("array", "tasks", "waits for", "nodes x GPUs", "limit (min)", "GPU hours", "from")
    for column in table.columns:
        column.overflow = "fold"
    names = {group.name: f"<{group.name}>" for group in groups}
    estimates = gpu_hours(plan, groups)
    for group in groups:
        needs = ", ".join(dependency_words(group, names))
        needs = "afterany: all above" if group.kind == REPORT else needs
        resources, estimate = group.resources, estimates[group.name]
        size = f"{resources.nodes} x {resources.gpus}"
        limit, hours = str(resources.timeout_min), f"{estimate.hours:.1f}"
        table.add_row(
            group.name, str(group.num_tasks), escape(needs), size, limit, hours, estimate.source
        )
    console.print(table)
    for line in length_lines(plan.stages):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    tell(console, shared_lines(plan.stages, states))
    tell(console, changed_lines(plan.stages, states))
    tell(console, takeover_lines(plan.distinct, states))
    tell(console, late_probe_lines(plan, states))
    done = read_manifests(plan)
    tell(console, kept_lines(plan.stages, states) + other_origins(done))
    tell(console, conversion_remarks(plan, done) + probe_remarks(plan, done) + remarks)
    root = plan.config.root.absolute()
    lines: list[str] = []
    for group in groups:
        dependency = ",".join(dependency_words(group, names))
        name = f"{plan.config.name}-{group.name}-<token>"
        folder, code = root / LEDGER / "<token>", root / "code" / "<digest>"
        parameters = sbatch_parameters(group, name, dependency, folder, code)
        console.rule(f"sbatch {group.name}")
        text = sbatch_text(parameters, group, folder, sys.executable)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        lines += environment_lines(os.environ, options_of(text))
    tell(console, [*dict.fromkeys(lines), *notes, *without_gpus(groups, os.environ)])
    total = sum(estimate.hours for estimate in estimates.values())
    console.print(
        f"{len(waiting)} of {len(plan.distinct)} stages to run in {len(groups)} sbatch calls; "
        f"{total:.1f} GPU hours; folder {plan.config.root}",
        soft_wrap=True,
    )
    return 0


def cancel(plan: Plan, console: Console, outdated: bool = False) -> int:
    """Cancel every job of this folder that waits or runs, and wait until the queue has none.

    `outdated` cancels only those that are no longer of this plan.
    """
    plan.config.root.mkdir(parents=True, exist_ok=True)
    with lock(plan.config.root / "lock"):
        ledger, rows = settle(plan.config.root)
        if outdated:
            _cancel(list(outdated_tasks(plan, ledger, rows)), console)
            return 0
        _cancel([name for name, row in rows.items() if not row.is_over], console)
        close_submissions(plan.config.root, ledger, "cancelled; run goes on from here")
    console.print(f"the queue has no job of {plan.config.name}")
    return 0


def _cancel(job_ids: list[str], console: Console) -> None:
    """Cancel jobs and wait until they are over; those in a state of no table are not waited for."""
    cancel_jobs(sorted(job_ids))
    deadline = time.monotonic() + CANCEL_WAIT_S
    while left := _active_ids(job_ids):
        if time.monotonic() > deadline:
            raise SlurmError(
                f"{len(left)} jobs are still ending after {CANCEL_WAIT_S:.0f} s: "
                f"{', '.join(left[:5])}; see squeue, and cancel again"
            )
        time.sleep(POLL_S)
    console.print(f"{len(job_ids)} jobs cancelled")


def _active_ids(job_ids: list[str]) -> list[str]:
    rows = read_queue(job_ids)
    left = [rows[name] for name in job_ids if name in rows]
    return sorted(row.job_id for row in left if row.is_active or row.state == "PENDING")
