"""`run`, `plan` and `report` on this machine; each returns an exit code."""

from __future__ import annotations

import signal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.commands.result_tables import show_tables
from pipeline.commands.status import STAGE_WIDTH, STYLES
from pipeline.executors.local import Progress, late_probe_lines, measure_late_probes, run_local
from pipeline.executors.preflight import check_before_start
from pipeline.executors.slurm.ledger import LEDGER
from pipeline.executors.slurm.states import read_standings
from pipeline.plan.length import length_lines
from pipeline.plan.place import left_out
from pipeline.plan.plan import Plan, record_stages, select
from pipeline.report.collect import MADE_FROM, all_states, collect, report_dir
from pipeline.report.remarks import (
    conversion_remarks,
    other_origins,
    probe_remarks,
    read_manifests,
)
from pipeline.report.text import findings, warnings
from pipeline.report.write import make_report
from pipeline.stages.run_folder import lock
from pipeline.stages.staleness import changed_lines, kept_lines, shared_lines, takeover_lines


def run(
    plan: Plan, console: Console, only: tuple[str, ...] = (), beside_queue: bool = False
) -> int:
    """Run what is not done yet, then write the report and print its table.

    `only` names stages: nothing but these and what they need is run. `beside_queue` runs here what
    waits in SLURM's queue too.
    """
    part = select(plan, list(only)) if only else plan
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan.config.root.mkdir(parents=True, exist_ok=True)
    with lock(plan.config.root / "lock"):
        if not beside_queue:
            refuse_queued(plan)
        record_stages(plan)
        states = all_states(part)
        num_done = sum(states[stage.name].status == "done" for stage in part.distinct)
        console.print(f"{plan.config.name}: {len(part.distinct)} stages, {num_done} already done")
        notes = check_before_start(part, states)  # first: what has faults differs by them alone
        tell(console, shared_lines(part.stages, states))
        tell(console, changed_lines(part.stages, states) + notes)
        with Progress(console, len(part.distinct), num_done) as progress:
            states = run_local(part, progress)
        faults = measure_late_probes(part, states)
        make_report(plan)
    show_report(plan, console)
    tell(console, faults)
    return 1 if faults or any(state.status == "failed" for state in states.values()) else 0


def tell(console: Console, lines: list[str]) -> None:
    """Print lines as they are, however wide."""
    for line in lines:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def refuse_queued(plan: Plan) -> None:
    """Leave to the cluster what its queue holds.

    Raises:
        ValueError: jobs of this plan wait or run on SLURM.
    """
    if not (plan.config.root / LEDGER).is_dir():
        return  # it was never submitted
    standings, _ = read_standings(plan)
    queued = [s for s in standings.values() if s.status in ("queued", "running") and s.job_id]
    if queued:
        raise ValueError(
            f"{len(queued)} stages are in SLURM's queue ({queued[0].stage} is job "
            f"{queued[0].job_id}); go on there with --executor slurm, or cancel them; to run them "
            "here all the same, ask for --executor local"
        )


def show_plan(plan: Plan, console: Console) -> int:
    """Print every stage with its signature, what it needs and where it stands; run nothing.

    Raises:
        ValueError: whatever `run` would refuse before the start.
    """
    states = all_states(plan)
    notes = check_before_start(plan, states, trust_kept=True)  # faults are shown alone
    table = Table(title=f"plan {plan.config.name}", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    widest = max(len(stage.name) for stage in plan.stages)
    table.add_column("stage", overflow="fold", min_width=min(widest, STAGE_WIDTH))
    table.add_column("signature", no_wrap=True)
    table.add_column("needs", overflow="fold")
    table.add_column("state", no_wrap=True)
    for stage in plan.stages:
        needs = ", ".join(source.name for source in stage.inputs.values())
        status = states[stage.name].status
        table.add_row(stage.name, stage.signature, needs, Text(status, STYLES.get(status, "")))
    console.print(table)
    for line in length_lines(plan.stages):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    tell(console, shared_lines(plan.stages, states))
    tell(console, changed_lines(plan.stages, states))
    tell(console, takeover_lines(plan.distinct, states))
    tell(console, late_probe_lines(plan, states))
    done = read_manifests(plan)
    tell(console, kept_lines(plan.stages, states) + other_origins(done))
    tell(console, conversion_remarks(plan, done) + probe_remarks(plan, done) + notes)
    waiting = sum(states[stage.name].status != "done" for stage in plan.distinct)
    console.print(f"{len(plan.stages)} stages, {waiting} to run; folder {plan.config.root}")
    return 0


def rebuild_report(plan: Plan, console: Console) -> int:
    """Write the report anew from whatever is done, and print its table.

    Raises:
        ValueError: nothing is, and what is there is of another plan of this folder.
    """
    states, others = all_states(plan), left_out(plan)
    again = changed_lines(plan.stages, states)
    needed = {source.name for stage in plan.stages for source in stage.inputs.values()}
    ends = [stage for stage in plan.stages if stage.name not in needed]
    if others and not any(states[stage.name].status == "done" for stage in ends):
        raise ValueError(
            "; ".join([f"report: nothing of this plan is finished, and {others}", *again])
        )
    tell(console, [*again, *([others] if others else [])])
    (report_dir(plan) / MADE_FROM).unlink(missing_ok=True)
    make_report(plan)
    show_report(plan, console)
    return 0


def show_report(plan: Plan, console: Console) -> None:
    """Print the result tables and the path of the page."""
    data = collect(plan)
    tell(console, findings(data) + warnings(data))
    show_tables(data, console)
    page = (report_dir(plan) / "index.html").absolute()
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
