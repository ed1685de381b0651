"""The commands behind `tools/run_pipeline.py`; each returns an exit code.

0 all is done, 1 a stage failed, 2 the user has something to fix, 130 interrupted.
Only what a command needs is imported: `status` does without plots, statistics and submitit.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from pipeline.stages.provenance import code_state
from pipeline.stages.run_folder import LockedError

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan

SEVERAL = "several"
MODULES = {name: f"pipeline.commands.{name}" for name in ("local", "slurm", "clean")}
FUNCTIONS = {
    "plan": "show_plan",
    "report": "rebuild_report",
}  # the others have their command's name
ONLY = {"cancel": "slurm", "report": "local", "clean": "clean"}  # whatever the executor is
FLAGS: dict[str, dict[str, Any]] = {  # of the command line, as argparse takes them
    "--executor": {"choices": ["local", "slurm"], "help": "where stages run (local)"},
    "--watch": {"action": "store_true", "help": "status: again every 10 s to the end"},
    "--json": {"action": "store_true", "dest": "as_json", "help": "status, runs: for machines"},
    "--stage": {"metavar": "NAME", "help": "logs: a stage as status names it"},
    "--only": {
        "action": "append",
        "metavar": "STAGE",
        "help": "run: this stage and what it needs",
    },
    "--replace": {
        "action": "store_true",
        "help": "run: cancel jobs that are not of the plan any more",
    },
    "--yes": {"action": "store_true", "help": "clean: remove what it prints"},
    "--outdated": {"action": "store_true", "help": "cancel: only such jobs"},
    "--output-dir": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "report A B ...: writes the page and all tables there",
    },
}
GO_WITH: dict[str, tuple[tuple[str, str | None], ...]] = {
    # options: the commands and executors (None: whichever) that have them
    "watch": (("status", None),),
    "as_json": (("status", None), ("runs", None)),
    "stage": (("logs", None),),
    "only": (("run", "local"),),
    "replace": (("run", "slurm"),),
    "outdated": (("cancel", "slurm"),),
    "yes": (("clean", "clean"),),
    "output_dir": (("report", SEVERAL),),
}
IN_WORDS: dict[tuple[str, str | None], str] = {  # others by the command's name
    ("run", "local"): "run on this machine (--executor local)",
    ("run", "slurm"): "run --executor slurm",
    ("report", SEVERAL): "report of several runs",
}
SHOW = ("status", "logs", "report", "cancel")  # they read run folders, no data
CLEAN_NEEDS = (
    "clean: nothing is removed: which run folders the plan needs is known by the content of its "
    "data and settings alone; run it where these are"
)
NAMES = ("run", "plan", "status", "logs", "cancel", "report", "clean")  # of a plan
RUNS = "runs"  # of whatever lies below a folder


@dataclass(frozen=True)
class Options:
    """What the command line asks for besides the config."""

    executor: str | None = None  # None: not asked for, which is local
    watch: bool = False
    as_json: bool = False
    stage: str | None = None
    only: tuple[str, ...] = ()
    replace: bool = False
    outdated: bool = False
    yes: bool = False
    output_dir: Path | None = None


class _Output:
    """A stream that goes on into nothing when its reader has left, as `grep -q` does."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with self._without_reader():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._without_reader():
            self.stream.flush()

    @contextlib.contextmanager
    def _without_reader(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Let a command end as it would, also `run`, when nobody reads its output any more."""
    output: Any = _Output(sys.stdout)
    errors: Any = _Output(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            yield
        finally:
            output.flush()
            errors.flush()


@reader_may_leave()
def init(arguments: list[str]) -> int:
    """Write a new config; see `pipeline.commands.init`."""
    module: Any = importlib.import_module("pipeline.commands.init")
    return int(module.main(arguments))


@reader_may_leave()
def execute(
    command: str, config_file: Path | None, overrides: list[str], options: Options | None = None
) -> int:
    """Run one of `NAMES` on a pipeline config.

    User errors are printed one a line on stderr and give exit code 2.
    """
    console, root = Console(), ""
    if command in ("run", "report"):
        code_state()  # that of now, when the code is imported, stands in the report
    try:
        options = options or Options()
        if command == "report" and config_file is None and overrides:
            keywords = keywords_of(command, SEVERAL, options)
            several: Any = importlib.import_module("pipeline.commands.several")
            return int(several.report_several([*map(Path, overrides)], console, **keywords))
        if command == RUNS:
            return _list_runs(config_file, overrides, options, console)
        plan = _plan_of(command, config_file, overrides, console)
        root = str(plan.config.root)
        return action_of(command, options)(plan, console)
    except LockedError as holder:
        lines, code = [f"another run works on this plan: {holder}"], 2
    except ValueError as error:
        lines, code = str(error).splitlines(), 2
    except OSError as error:  # a write that fails does not say which file it was, an open does
        lines, code = [f"{error}" if error.filename or not root else f"{error} (below {root})"], 2
    except KeyboardInterrupt:
        lines, code = ["interrupted; the same command goes on from here"], 130
    for line in lines:
        print(f"run_pipeline: {line}", file=sys.stderr)
    return code


def _list_runs(
    config_file: Path | None, folders: list[str], options: Options, console: Console
) -> int:
    """List the pipelines below a folder, `runs` where none is named.

    Raises:
        ValueError: several are named, or a config, or an option of another command is given.
    """
    keywords_of(RUNS, "local", options)
    if config_file is not None or len(folders) > 1:
        given = [*([str(config_file)] if config_file else []), *folders]
        raise ValueError(f"runs: wanted one folder, and no config, got {' '.join(given)}")
    module: Any = importlib.import_module("pipeline.commands.runs")
    folder = Path(folders[0] if folders else RUNS)
    return int(module.show_runs(folder, console, options.as_json))


def _plan_of(
    command: str, config_file: Path | None, overrides: list[str], console: Console
) -> Plan:
    """Return the plan that a command is for, having told what is to be known of it.

    Raises:
        ValueError: it cannot be read, or there is nothing of it to show.
    """
    if config_file is None:
        or_two = " (or two runs' folders to compare)" if command == "report" else ""
        raise ValueError(f"{command}: --config-file is missing{or_two}")
    from pipeline.executors.slurm.ledger import LEDGER  # noqa: PLC0415  (--help needs none)
    from pipeline.plan.build import load_plan  # noqa: PLC0415
    from pipeline.plan.place import nothing_begun  # noqa: PLC0415
    from pipeline.plan.plan import other_configs  # noqa: PLC0415

    try:
        plan = load_plan(config_file, overrides, recorded=command in SHOW)
    except ValueError as error:
        if command != "clean":
            raise
        raise ValueError(f"{error}\n{CLEAN_NEEDS}") from None
    sys.stderr.writelines(f"run_pipeline: {line}\n" for line in plan.notes)
    if command == "status":  # it says so itself
        return plan
    if command in ("run", "plan"):  # which are for what was not begun
        for line in other_configs(plan):
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    elif (empty := nothing_begun(plan.config)) and not (plan.config.root / LEDGER).is_dir():
        raise ValueError(empty)
    return plan


def action_of(command: str, options: Options) -> Callable[[Plan, Console], int]:
    """Return what carries a command out, given the executor and the other options."""
    executor = ONLY.get(command, options.executor or "local")
    keywords = keywords_of(command, executor, options)
    status: Any = importlib.import_module("pipeline.commands.status")
    if command == "status":
        return partial(status.show_status, **keywords)
    if command == "logs":
        return partial(status.show_log, name=options.stage)
    if (command, options.executor) == ("run", "local"):
        keywords["beside_queue"] = True
    module: Any = importlib.import_module(MODULES[executor])
    function: Callable[..., int] = getattr(module, FUNCTIONS.get(command, command))
    return partial(function, **keywords) if keywords else function


def keywords_of(command: str, executor: str, options: Options) -> dict[str, Any]:
    """Return the options that are given, all of which have to be the command's.

    Raises:
        ValueError: one goes with another command or executor.
    """
    keywords: dict[str, Any] = {}
    for name, places in GO_WITH.items():
        if value := getattr(options, name):
            keywords[name] = value
            if not {(command, executor), (command, None)} & {*places}:
                words = " and ".join(IN_WORDS.get(place, place[0]) for place in places)
                raise ValueError(
                    f"--{name.removeprefix('as_').replace('_', '-')} goes with {words}"
                )
    return keywords
