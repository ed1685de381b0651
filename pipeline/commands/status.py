"""`status` and `logs`: a table, the same as JSON, the end of a stage's log."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.executors.slurm.states import Standing, last_lines, read_standings
from pipeline.plan.place import left_out, nothing_begun, others_runs, run_folders
from pipeline.plan.plan import Plan, stage_named
from pipeline.report.remarks import read_manifests, remarks, row_doubts, unclean_remarks
from pipeline.stages.files import last_json_line, one_line, read_json, size_of, size_text
from pipeline.stages.run_folder import (
    FAILURE,
    JOB,
    LOCK,
    LOG,
    METRICS,
    State,
    is_kept_back,
    is_locked,
)
from pipeline.stages.stage import Stage
from pipeline.stages.staleness import changed_lines, how_it_differs, newest_folder

NOT_RUN = "not run"  # missing, as what it needs failed
STYLES = {"done": "green", "failed": "red", NOT_RUN: "red", "running": "yellow", "queued": "cyan"}
ORDER = ("done", "running", "queued", "missing", NOT_RUN, "failed")
WATCH_EVERY_S = 10.0
LOG_LINES = 5
STARTS_S = 10.0  # so long after its job was written a stage may not have its lock yet
COLUMNS = ("backbone", "stage", "state", "job", "node", "gpus", "elapsed", "left", "last")
STATES = ("last.pth", "previous.pth", "augmented_linear.pth")  # of a pretraining, of a probe
LAST_CHECKPOINT = "last_checkpoint"  # detectron2's, which holds the name of the file
STAGE_WIDTH = 28  # so wide is the column of names at least, where names are that long
MAX_ROWS = 60
MAX_REASONS = 20
MAX_NAMED = 5  # stages on a line that they share
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def show_status(plan: Plan, console: Console, watch: bool = False, as_json: bool = False) -> int:
    """Print where every stage stands; return 1 if any failed."""
    standings, notes = _read(plan)
    if as_json:
        print(json.dumps(status_json(plan, standings, notes), indent=2))
        return _code(standings)
    if not watch:
        console.print(status_text(plan, standings, notes), soft_wrap=True)
        return _code(standings)
    from rich.live import Live  # noqa: PLC0415  (one look needs none)

    with Live(status_text(plan, standings, notes), console=console, auto_refresh=False) as live:
        while any(standing.status in ("queued", "running") for standing in standings.values()):
            time.sleep(WATCH_EVERY_S)
            standings, notes = _read(plan)
            live.update(status_text(plan, standings, notes), refresh=True)
    return _code(standings)


def _read(plan: Plan) -> tuple[dict[str, Standing], list[str]]:
    """Return the standings and what is to be said of them.

    A stage that was interrupted shows how far it came, one that was not begun as it is now how its
    latest attempt failed.
    """
    standings, notes = read_standings(plan)
    manifests = read_manifests(plan, standings)
    doubts, rows = row_doubts(plan, manifests), [s for s in plan.stages if s.kind == "finetune"]
    unclean = unclean_remarks((doubts[s.name] for s in rows if s.name in doubts), len(rows))
    notes = notes + unclean + remarks(plan, manifests)
    for stage in plan.stages:
        standing = standings[stage.name]
        if standing.status != "missing" or is_kept_back(standing.reason):
            continue
        if not standing.reason and (reason := _interrupted(stage)):
            standings[stage.name] = replace(standing, reason=reason)
        if folder := earlier_attempt(stage):
            with suppress(OSError, ValueError, LookupError, TypeError):
                if is_locked(folder / LOCK):
                    why = f"at work in {folder} for another plan"
                else:
                    failure = one_line(read_json(folder / FAILURE)["reason"])
                    why = f"the latest attempt failed: {failure} (log: {folder / LOG})"
                reason = f"{why}; {_since(stage)}"
                standings[stage.name] = replace(standing, reason=reason, log=str(folder / LOG))
    states = {name: State(each.status) for name, each in standings.items()}
    untold = [stage for stage in plan.stages if standings[stage.name].reason is None]
    notes += changed_lines(
        (stage for stage in untold if states[stage.name].status == "missing"), states
    )
    notes += [line] if (line := left_out(plan)) else []
    if not any(stage.run_dir.exists() for stage in plan.stages):
        where = nothing_begun(plan.config) or others_runs(plan.config.root)
        notes = [*([where] if where else []), *notes]
    return standings, notes


def _interrupted(stage: Stage) -> str | None:
    """Return how far a stage came that was interrupted, and what a run goes on from, or None.

    Where nothing was saved it says that, and where the log is.
    """
    pointer = stage.run_dir / LAST_CHECKPOINT
    names = [pointer.read_text(encoding="utf-8").strip()] if pointer.is_file() else STATES
    saved = [name for name in names if name and (stage.run_dir / name).is_file()]
    if not saved:
        job, log = stage.run_dir / JOB, stage.run_dir / LOG
        begun = log.exists() and job.exists() and time.time() - job.stat().st_mtime > STARTS_S
        why = f"ended without a word (stopped, killed, or a full disk); its log: {log}"
        return why if begun else None
    entry = last_json_line(stage.run_dir / METRICS) or {}
    step, total = entry.get("step"), entry.get("max_steps")
    logged = f", last logged step {step:.0f} of {total:.0f}" if step and total else ""
    return f"interrupted{logged}; run goes on from {saved[0]}"


def earlier_attempt(stage: Stage) -> Path | None:
    """Return the folder of the latest attempt at a stage that was not begun as it is now."""
    return None if (stage.run_dir / JOB).exists() else newest_folder(stage, JOB)


def _since(stage: Stage) -> str:
    """Return that a stage's identity is another than that of its latest attempt, and by what."""
    folder = newest_folder(stage, JOB)
    why = folder and how_it_differs(stage, folder)
    return f"what it is made from has changed since{f': {why}' if why else ''}"


def show_log(plan: Plan, console: Console, name: str | None) -> int:
    """Print the path and the end of the log of the stage `name`.

    Raises:
        ValueError: there is no such stage, or several, or it has no log yet.
    """
    standings, _ = read_standings(plan)
    if name is None:
        raise ValueError(f"logs: --stage is missing; {plan.config.name} has {', '.join(standings)}")
    try:
        stage = stage_named(plan, name)
    except ValueError as fault:
        raise ValueError(f"--stage: {fault}") from None
    path = Path(standings[stage.name].log)
    if not path.exists() and (folder := earlier_attempt(stage)):
        path = folder / LOG
        console.print(f"of an earlier attempt; {_since(stage)}", style="yellow", **PLAIN)
    if not path.exists():
        raise ValueError(f"{path}: {stage.name} has not written a log yet")
    console.print(str(path), style="bold", **PLAIN)
    for line in last_lines(path, 40):
        console.print(line, **PLAIN)
    return 0


def status_text(plan: Plan, standings: dict[str, Standing], notes: list[str]) -> RenderableType:
    """Return the table of backbones and stages, the sum, and why stages failed.

    A large plan has one row a backbone, and the rows of what is at work. Where nothing was begun
    the notes say where that was looked for, and there is no table.
    """
    shown = list(standings.values())
    lines: list[RenderableType] = []
    if all(each.status == "missing" for each in shown) and not run_folders(plan.config.root):
        return Group(*(Text(note, style="yellow") for note in notes))
    if len(shown) > MAX_ROWS:
        lines.append(matrix(plan, standings))
        shown = [standing for standing in shown if standing.status == "running"][:MAX_ROWS]
    if shown:
        lines.append(_rows(plan, shown))
    counts = Counter(map(word, standings.values()))
    total = ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])
    folder = f"folder {plan.config.root}"
    if len(standings) <= MAX_ROWS:  # of a large plan it takes long
        folder += f" ({size_text(size_of(plan.config.root))})"
    lines.append(Text(f"{len(standings)} stages: {total}; {folder}"))
    lines += [Text(note, style="yellow") for note in notes]
    return Group(*lines, *_reasons(standings))


def word(standing: Standing) -> str:
    """Return the status as a reader's word."""
    return NOT_RUN if is_kept_back(standing.reason) else standing.status


def _rows(plan: Plan, shown: list[Standing]) -> Table:
    rows: list[tuple[str | Text, ...]] = []
    for standing in shown:
        state = Text(word(standing), style=STYLES.get(word(standing), ""))
        last = Text(standing.metric)
        if standing.status == "queued" and standing.reason:
            last = Text(f"({standing.reason})", style="dim")
        kind, _, slug = standing.stage.partition("/")
        label = f"{kind}/{slug.removeprefix(f'{standing.backbone}--')}"
        limit = duration(standing.limit_left_s)
        left = duration(standing.left_s) or (f"limit {limit}" if limit else "")
        job = standing.job_id, standing.node, standing.gpus, duration(standing.elapsed_s), left
        rows.append((standing.backbone, label, state, *job, last))
    table = Table(
        title=f"status {plan.config.name}", box=None, padding=(0, 2, 0, 0), pad_edge=False
    )
    used = [number for number in range(len(COLUMNS)) if any(row[number] for row in rows)]
    for number in used:
        widest = max(len(row[number]) for row in rows)
        whole = min(widest, STAGE_WIDTH) if COLUMNS[number] == "stage" else None
        table.add_column(COLUMNS[number], overflow="fold", min_width=whole)
    for row in rows:
        cells = (row[number] for number in used)
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return table


def matrix(plan: Plan, standings: dict[str, Standing]) -> Table:
    """Return one row a backbone: how many of its stages of each kind stand where."""
    cells: dict[str, dict[str, Counter[str]]] = {}
    for stage in plan.stages:
        column = stage.kind if stage.task is None else f"{stage.kind} {stage.task}"
        row = cells.setdefault(stage.backbone, {})
        row.setdefault(column, Counter())[word(standings[stage.name])] += 1
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    table = Table("backbone", *columns, title=f"status {plan.config.name}")
    for each in table.columns:
        each.overflow = "fold"
    for backbone, row in cells.items():
        texts = []
        for column in columns:
            counts = row.get(column, Counter())
            parts = [Text(f"{counts[s]} {s}", STYLES.get(s, "")) for s in ORDER if counts[s]]
            texts.append(Text(" ").join(parts))
        table.add_row(backbone, *texts)
    return table


def _reasons(standings: dict[str, Standing]) -> list[Text]:
    """Return one line for every reason; the log's end where a stage failed by itself.

    Stages that need the same failed one, or wait for the same reason, share a line.
    """
    lines = []
    failed = [
        each for each in standings.values() if each.status == "failed" or is_kept_back(each.reason)
    ]
    causes = [each for each in failed if each.status == "failed"]
    rest = [each for each in failed if each not in causes] if len(failed) <= MAX_REASONS else []
    for each in causes[:MAX_REASONS]:
        log = f" (log: {each.log})" if Path(each.log).is_file() else ""
        lines.append(Text(f"{each.stage}: {each.reason}{log}", style="red"))
        tail = last_lines(Path(each.log), LOG_LINES)
        lines += [Text(f"    {line}", style="dim") for line in tail]
    because: dict[str, list[str]] = {}
    for each in rest:
        because.setdefault(str(each.reason), []).append(each.stage)
    lines += [Text(_line(names, why), style="red") for why, names in because.items()]
    if hidden := len(failed) - min(len(causes), MAX_REASONS) - len(rest):
        lines.append(Text(f"and {hidden} more, with --json", style="red"))
    told = ("missing", "running")
    waiting: dict[str, list[str]] = {}
    for each in standings.values():
        if each.status in told and each.reason and not is_kept_back(each.reason):
            waiting.setdefault(each.reason, []).append(each.stage)
    lines += [Text(_line(names, why)) for why, names in list(waiting.items())[:MAX_REASONS]]
    return lines


def _line(names: list[str], why: str) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}: {why}"


def status_json(plan: Plan, standings: dict[str, Standing], notes: list[str]) -> dict[str, object]:
    """Return the same for machines."""
    return {
        "pipeline": plan.config.name,
        "folder": str(plan.config.root.absolute()),
        "notes": notes,
        "counts": dict(Counter(standing.status for standing in standings.values())),
        "stages": [asdict(standing) for standing in standings.values()],
    }


def duration(seconds: float | None) -> str:
    """Return `1-02:03:04`, `2:03:04` or `3:04`; nothing for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}-{hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _code(standings: dict[str, Standing]) -> int:
    return 1 if any(standing.status == "failed" for standing in standings.values()) else 0
