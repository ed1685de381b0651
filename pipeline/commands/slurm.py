"""`run`, `plan` and `cancel` on a SLURM cluster."""

from __future__ import annotations

import sys
import time
from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commands.local import show_report, tell
from pipeline.config.resources import REPORT
from pipeline.executors.late_probe import late_probe_lines
from pipeline.executors.preflight import check_before_start
from pipeline.executors.slurm.arrays import plan_groups, resource_faults
from pipeline.executors.slurm.gpu_hours import gpu_hours
from pipeline.executors.slurm.ledger import LEDGER, Submission, close_submissions, read_ledger
from pipeline.executors.slurm.queue import JobRow, SlurmError, read_queue
from pipeline.executors.slurm.sbatch import dependency_words, sbatch_parameters, sbatch_text
from pipeline.executors.slurm.states import Standing, read_standings
from pipeline.executors.slurm.submit import cancel_jobs, settle, submit
from pipeline.plan.plan import Plan
from pipeline.report.collect import all_states
from pipeline.report.origins import other_origins, read_manifests
from pipeline.report.write import make_report
from pipeline.stages.run_folder import State, lock
from pipeline.stages.staleness import changed_lines, kept_lines, shared_lines
from pipeline.stages.takeover import takeover_lines

CANCEL_WAIT_S = 120.0
POLL_S = 1.0


def run(plan: Plan, console: Console) -> int:
    """Submit what is neither done nor in the queue, and return; the jobs go on by themselves."""
    plan.config.root.mkdir(parents=True, exist_ok=True)
    with lock(plan.config.root / "lock"):
        ledger, rows = settle(plan.config.root)
        standings, notes = read_standings(plan)
        if blind := [note for note in notes if note.startswith("squeue")]:
            raise SlurmError("; ".join(blind))  # a job might be submitted twice
        waiting = [s for s in plan.distinct if standings[s.name].status in ("missing", "failed")]
        counts = Counter(standings[stage.name].status for stage in plan.distinct)
        summary = ", ".join(
            f"{counts[status]} {status}" for status in ("done", "running", "queued")
        )
        console.print(f"{plan.config.name}: {len(plan.distinct)} stages, {summary}")
        if not waiting:
            return _nothing_to_submit(plan, console, standings)
        states = {name: State(standing.status) for name, standing in standings.items()}
        tell(console, shared_lines(plan.stages, states))
        tell(console, changed_lines(waiting, states))
        tell(console, check_before_start(plan, states, here=False))
        _clear(plan, ledger, rows, {standings[stage.name].job_id for stage in waiting})
        submitted = {
            standing.stage: standing.job_id
            for standing in standings.values()
            if standing.status in ("queued", "running") and standing.job_id
        }
        num_jobs = 0
        for group, entry in submit(plan, waiting, submitted):
            what = f"{len(group.stages)} stages" if group.stages else "after all others"
            line = f"  job {entry.job_id}: {group.name}, {what}"
            console.print(line, markup=False, highlight=False)
            num_jobs += 1
    console.print(
        f"{len(waiting)} stages in {num_jobs} jobs submitted; they need this command no more.\n"
        "see: tools/run_pipeline.py status --watch --config-file "
        f"{plan.config_file}",
        soft_wrap=True,
        markup=False,
    )
    return 0


def _nothing_to_submit(plan: Plan, console: Console, standings: dict[str, Standing]) -> int:
    if all(standing.status == "done" for standing in standings.values()):
        make_report(plan)
        show_report(plan, console)
    else:
        console.print("nothing to submit; everything that is left is in the queue")
    return 0


def _clear(plan: Plan, ledger: list[Submission], rows: dict[str, JobRow], stale: set[str]) -> None:
    """Cancel what new jobs take the place of: tasks that can never start, waiting reports."""
    reports = [entry for entry in ledger if entry.kind == REPORT]
    stale |= {entry.job_id for entry in reports}
    cancel_jobs(sorted(name for name in stale if name in rows and rows[name].state == "PENDING"))
    close_submissions(plan.config.root, reports, "replaced by the report of a later run")


def show_plan(plan: Plan, console: Console) -> int:
    """Print the arrays, what they wait for, the exact sbatch text, and the GPU hours.

    Raises:
        ValueError: whatever `run` would refuse before it submits.
    """
    states = all_states(plan)
    waiting = [stage for stage in plan.distinct if states[stage.name].status != "done"]
    groups = plan_groups(plan, waiting)
    if faults := resource_faults(plan):
        raise ValueError("\n".join(faults))
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
    tell(console, shared_lines(plan.stages, states))
    tell(console, changed_lines(plan.stages, states))
    tell(console, takeover_lines(plan.distinct, states))
    tell(console, late_probe_lines(plan, states))
    tell(console, kept_lines(plan.stages, states) + other_origins(read_manifests(plan)))
    tell(console, check_before_start(plan, states, here=False, trust_kept=True))
    root = plan.config.root.absolute()
    for group in groups:
        dependency = ",".join(dependency_words(group, names))
        name = f"{plan.config.name}-{group.name}-<token>"
        folder, code = root / LEDGER / "<token>", root / "code" / "<digest>"
        parameters = sbatch_parameters(group, name, dependency, folder, code)
        console.rule(f"sbatch {group.name}")
        text = sbatch_text(parameters, group, folder, sys.executable)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    total = sum(estimate.hours for estimate in estimates.values())
    console.print(
        f"{len(waiting)} of {len(plan.distinct)} stages to run in {len(groups)} sbatch calls; "
        f"{total:.1f} GPU hours; folder {plan.config.root}",
        soft_wrap=True,
    )
    return 0


def cancel(plan: Plan, console: Console) -> int:
    """Cancel every job of this folder that waits or runs, and wait until the queue has none."""
    plan.config.root.mkdir(parents=True, exist_ok=True)
    with lock(plan.config.root / "lock"):
        ledger = [entry for entry in read_ledger(plan.config.root) if not entry.over]
        names = [entry.job_name for entry in ledger]
        active = _active_ids(names)
        cancel_jobs(active)
        deadline = time.monotonic() + CANCEL_WAIT_S
        while left := _active_ids(names):
            if time.monotonic() > deadline:
                raise SlurmError(
                    f"{len(left)} jobs are still ending after {CANCEL_WAIT_S:.0f} s: "
                    f"{', '.join(left[:5])}; see squeue, and cancel again"
                )
            time.sleep(POLL_S)
        close_submissions(plan.config.root, ledger, "cancelled; run goes on from here")
    console.print(f"{len(active)} jobs cancelled; the queue has none of {plan.config.name}")
    return 0


def _active_ids(names: list[str]) -> list[str]:
    rows = read_queue(names).values()
    return sorted(row.job_id for row in rows if row.is_active or row.state == "PENDING")
