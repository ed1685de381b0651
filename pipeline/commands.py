"""The commands behind `tools/run_pipeline.py`; each returns an exit code.

0 all is done, 1 a stage failed, 2 the user has something to mend, 130 interrupted.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.collect import all_states, collect, report_dir, report_key
from pipeline.executors import check_before_start, run_local
from pipeline.files import read_json, write_json
from pipeline.plan import Plan, load_plan
from pipeline.progress import Progress
from pipeline.report_text import rich_tables
from pipeline.status import STYLES, show_log, show_status
from pipeline.store import LockedError, State, lock

REPORT_KEY = "made_from.json"


@dataclass(frozen=True)
class Options:
    """What the command line asks for besides the config."""

    executor: str = "local"
    watch: bool = False
    as_json: bool = False
    stage: str | None = None


def execute(
    command: str, config_file: Path, overrides: list[str], options: Options | None = None
) -> int:
    """Run one of `COMMANDS` on a pipeline config.

    User errors are printed one a line on stderr and give exit code 2.
    """
    console = Console()
    try:
        options = options or Options()
        return _action(command, options)(load_plan(config_file, overrides), console)
    except LockedError as holder:
        print(f"run_pipeline: another run works on this plan: {holder}", file=sys.stderr)
        return 2
    except ValueError as error:
        for line in str(error).splitlines():
            print(f"run_pipeline: {line}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"run_pipeline: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run_pipeline: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _action(command: str, options: Options) -> Callable[[Plan, Console], int]:
    """Return what carries a command out, given the executor and the other options."""
    if command == "status":
        return partial(show_status, watch=options.watch, as_json=options.as_json)
    if command == "logs":
        return partial(show_log, name=options.stage)
    if command == "cancel" or (options.executor == "slurm" and command in ("run", "plan")):
        cluster = importlib.import_module("pipeline.slurm.commands")  # it needs submitit
        action: Callable[[Plan, Console], int] = cluster.COMMANDS[command]
        return action
    return COMMANDS[command]


def run(plan: Plan, console: Console) -> int:
    """Run what is not done yet, then write the report and print its table."""
    signal.signal(signal.SIGTERM, _interrupt)
    plan.root.mkdir(parents=True, exist_ok=True)
    with lock(plan.root / "lock"):
        states = all_states(plan)
        num_done = sum(state.status == "done" for state in states.values())
        console.print(f"{plan.config.name}: {len(plan.stages)} stages, {num_done} already done")
        check_before_start(plan, states)
        with Progress(console, len(plan.stages), num_done) as progress:
            states = run_local(plan, progress)
        make_report(plan)
    show_report(plan, console)
    return 1 if any(state.status == "failed" for state in states.values()) else 0


def show_plan(plan: Plan, console: Console) -> int:
    """Print every stage with its signature, what it needs and where it stands; run nothing."""
    states = all_states(plan)
    table = Table("stage", "signature", "needs", "state", title=f"plan {plan.config.name}")
    for stage in plan.stages:
        needs = ", ".join(source.name for source in stage.inputs.values())
        table.add_row(stage.name, stage.signature, needs, _state_text(states[stage.name]))
    console.print(table)
    waiting = sum(state.status != "done" for state in states.values())
    console.print(f"{len(plan.stages)} stages, {waiting} to run; folder {plan.root}")
    return 0


def rebuild_report(plan: Plan, console: Console) -> int:
    """Write the report anew from whatever is done, and print its table."""
    (report_dir(plan) / REPORT_KEY).unlink(missing_ok=True)
    make_report(plan)
    show_report(plan, console)
    return 0


def make_report(plan: Plan) -> None:
    """Write the report unless one that exists was made from the same results."""
    folder = report_dir(plan)
    key = report_key(plan)
    marker = folder / REPORT_KEY
    if marker.exists() and (folder / "index.html").exists() and read_json(marker) == key:
        return
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    renderer = importlib.import_module("pipeline.report_render")  # it takes long to import
    renderer.write_report(collect(plan), folder)
    write_json(marker, key)


def show_report(plan: Plan, console: Console) -> None:
    """Print the result tables and the path of the page."""
    for table in rich_tables(collect(plan)):
        console.print(table)
    page = (report_dir(plan) / "index.html").absolute()
    console.print(f"report: {page}", soft_wrap=True, highlight=False)


def _state_text(state: State) -> Text:
    return Text(state.status, style=STYLES.get(state.status, ""))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


COMMANDS: dict[str, Callable[[Plan, Console], int]] = {
    "run": run,
    "plan": show_plan,
    "report": rebuild_report,
}
NAMES = ("run", "plan", "status", "logs", "cancel", "report")
