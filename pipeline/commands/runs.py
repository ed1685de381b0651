"""`runs`: all pipelines below a folder, as their run folders alone tell of them.

No plan is made: neither configs nor data are read. `status` looks closer, at the outputs and at
SLURM's queue.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.plan.place import run_folders
from pipeline.plan.plan import CONFIGS, STAGES
from pipeline.report.statistics import spread
from pipeline.stages.files import printable, read_json, size_of, size_text
from pipeline.stages.run_folder import CONFIG, FAILURE, JOB, LOCK, MANIFEST, is_locked
from pipeline.stages.stage import RULE, SIGNATURE_DIGITS, STAGE_KINDS

STYLES = {"done": "green", "failed": "red", "running": "yellow", "unknown": "red"}
COLUMNS = ("pipeline", "state", "done", "best mean (seeds)", "newest", "size")
MAX_SIZED = 60  # stages of a pipeline of which the size is added up
MAX_NOTES = 3  # of one kind, for a pipeline
STAGE_FOLDER = re.compile(rf"({'|'.join(STAGE_KINDS)})/[^/]+-[0-9a-f]{{{SIGNATURE_DIGITS}}}")
RESULTS = Path("report", "results.json")


@dataclass(frozen=True)
class Best:
    """The highest mean of one number of a task or probe; `n` seeds are behind it."""

    of: str
    metric: str
    backbone: str
    mean: float
    std: float | None
    n: int


@dataclass
class Listed:
    """A pipeline: how many of its stages stand where, its best numbers, its newest stage's date.

    A `run` that is at work here has it locked, also between two stages. `notes` say what could not
    be read, or is not as this version writes it.
    """

    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    is_locked: bool = False
    is_planned: bool = False
    best: tuple[Best, ...] = ()
    newest: float | None = None
    size: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Return `running`, else `failed`, `waiting` or `done`.

        Without a stage it is `planned`, or `unknown` where nobody knows of a plan either.
        """
        if self.is_locked:
            return "running"
        words = ("running", "failed", "waiting", "done")
        nothing = "planned" if self.is_planned else "unknown"
        return next((word for word in words if self.counts[word]), nothing)

    def seen(self, when: float) -> None:
        """Keep the newest of the times of its stages."""
        self.newest = when if self.newest is None else max(self.newest, when)


def show_runs(folder: Path, console: Console, as_json: bool = False) -> int:
    """List all pipelines below a folder; return 1 if a stage of any of them failed.

    Raises:
        ValueError: there is no such folder, or no pipeline below it.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise ValueError(
            f"{printable(folder)}: {what}; wanted a folder below which pipelines lie: runs FOLDER"
        )
    folders, notes, num_searched = pipelines_below(folder)
    if not folders:
        more = f"; {'; '.join(notes)}" if notes else ""
        raise ValueError(
            f"no pipeline in or below {printable(folder.absolute())} ({num_searched} folders "
            f"looked at, hidden ones left out){more}"
        )
    listed = [read_pipeline(path) for path in folders]
    if as_json:
        print(json.dumps(runs_json(folder, listed, notes), indent=2))
    else:
        console.print(runs_table(folder, listed), soft_wrap=True)
        lines = [f"{_name(folder, each)}: {note}" for each in listed for note in each.notes]
        for line in [*lines, *notes]:
            console.print(Text(printable(line), style="yellow"), soft_wrap=True)
    return 1 if any(each.counts["failed"] for each in listed) else 0


# --- where they lie ---------------------------------------------------------------------------


def pipelines_below(folder: Path) -> tuple[list[Path], list[str], int]:
    """Return the pipelines in or below a folder, what could not be read, and the folders seen.

    A folder that is reached twice counts once, by its own name rather than a link's. Hidden
    folders, and links back to what the search came from, are left out.
    """
    above = {folder.resolve(), *folder.resolve().parents}
    seen: set[tuple[int, int]] = set()
    folders, notes = [], []
    to_search, links = [folder], list[Path]()
    while to_search or links:
        path = to_search.pop() if to_search else links.pop()
        try:
            stat = path.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            notes.append(f"{path}: {error.strerror}")
            continue
        if _is_pipeline(path, {entry.name for entry in entries}):
            folders.append(path)
            continue
        for entry in entries:
            with suppress(OSError):  # a link that leads to itself
                if entry.name.startswith(".") or not entry.is_dir():
                    continue
                below = path / entry.name
                if not entry.is_symlink():
                    to_search.append(below)
                elif below.resolve() not in above:
                    links.insert(0, below)
    return sorted(folders), notes, len(seen)


def _is_pipeline(folder: Path, names: set[str]) -> bool:
    if names & {CONFIGS, STAGES}:
        return True
    is_begun = bool(names & STAGE_KINDS.keys()) and bool(run_folders(folder))
    return is_begun or ("report" in names and (folder / RESULTS).is_file())


# --- one of them ------------------------------------------------------------------------------


def read_pipeline(folder: Path) -> Listed:
    """Return how a pipeline stands, from its run folders; of one without any from its report."""
    listed = Listed(folder)
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    faults: dict[str, list[str]] = {}
    stages = _stages(folder, listed.notes)
    versions: dict[str, str] = {}
    for name in stages:
        kind, _, place = name.partition("/")
        run_dir, signature = folder / name, place[-SIGNATURE_DIGITS:]
        state, manifest, fault = _stage_state(run_dir, signature)
        listed.counts[state] += 1
        if fault:
            faults.setdefault(fault, []).append(name)
        with suppress(OSError, ValueError, TypeError):
            listed.seen(_started(manifest) or (run_dir / JOB).stat().st_mtime)
        if manifest and kind not in versions:
            versions[kind] = _other_version(run_dir, kind)
        parts = place[: -SIGNATURE_DIGITS - 1].split("--")
        if kind in ("finetune", "probe") and len(parts) > 1:
            _add(values, parts[0], parts[1], manifest.get("metrics"))
    for fault, names in faults.items():
        more = f" and {len(names) - MAX_NOTES} more" if len(names) > MAX_NOTES else ""
        listed.notes.append(f"{', '.join(names[:MAX_NOTES])}{more}: {fault}")
    if others := ", ".join(filter(None, versions.values())):
        listed.notes.append(f"made under other versions, which `run` makes again: {others}")
    if not stages:
        _read_report(listed, values)
    elif len(stages) <= MAX_SIZED:
        listed.size = size_of(folder)
    listed.is_locked = is_locked(folder / LOCK)
    listed.best = tuple(_best(values))
    return listed


def _stages(folder: Path, notes: list[str]) -> list[str]:
    """Return the folders of a pipeline's stages, as `kind/slug-signature`.

    They are those of the plan that was last run; where that was not recorded, as by older versions,
    those that are there, of each name the one begun last.
    """
    is_damaged = False
    try:
        recorded = read_json(folder / STAGES)
        names = dict.fromkeys(recorded.values())
        if all(STAGE_FOLDER.fullmatch(name) for name in names):
            return list(names)
        is_damaged = True
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, AttributeError):
        is_damaged = True
    if is_damaged:
        notes.append(f"{STAGES} is damaged; what is there is listed, and `run` writes it anew")
    by_slug: dict[str, list[Path]] = {}
    for path in run_folders(folder):
        by_slug.setdefault(str(path)[: -SIGNATURE_DIGITS - 1], []).append(path)
    newest = (paths[0] if len(paths) == 1 else max(paths, key=_begun) for paths in by_slug.values())
    return [f"{path.parent.name}/{path.name}" for path in newest]


def _begun(run_dir: Path) -> float:
    path = run_dir / JOB
    return (path if path.exists() else run_dir).stat().st_mtime


def _stage_state(run_dir: Path, signature: str) -> tuple[str, dict[str, Any], str]:
    """Return the state of a stage, its manifest where it is done, and what is wrong there."""
    fault = ""
    try:
        manifest = json.loads((run_dir / MANIFEST).read_bytes())
        if isinstance(manifest, dict) and isinstance(manifest.get("outputs"), dict):
            stored = manifest.get("signature", signature)  # the first versions wrote none
            if stored == signature:
                return "done", manifest, ""
            return "failed", {}, f"is of signature {stored}, merged by hand; move it away"
        fault = f"{MANIFEST} is none of a stage; `run` makes the stage again"
    except (ValueError, RecursionError):
        fault = f"{MANIFEST} is damaged; `run` makes the stage again"
    except (FileNotFoundError, NotADirectoryError):
        if is_locked(run_dir / LOCK):
            return "running", {}, ""
    except OSError as error:
        fault = f"{MANIFEST}: {error.strerror}"
    return ("failed" if (run_dir / FAILURE).exists() else "waiting"), {}, fault


def _started(manifest: dict[str, Any]) -> float | None:
    """Return when the attempt began that made a result; a copied folder's times say nothing."""
    made = manifest.get("provenance")
    started = made.get("started") if isinstance(made, dict) else None
    return datetime.fromisoformat(started).timestamp() if started else None


def _other_version(run_dir: Path, kind: str) -> str:
    """Return that a finished stage was made under another version than this one, or nothing."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        record, version = read_json(run_dir / CONFIG), STAGE_KINDS[kind].version
        made, rule = record["version"], record.get("rule", 1)
        if made != version or rule != RULE:
            return f"{kind} {made} by rule {rule} (now {version} by rule {RULE})"
    return ""


def _read_report(listed: Listed, values: dict[tuple[str, str], dict[str, list[float]]]) -> None:
    """Take the numbers of a pipeline of which nothing but the report is there."""
    path = listed.folder / RESULTS
    if not path.is_file():
        with suppress(OSError, ValueError, TypeError, RecursionError):
            configs = read_json(listed.folder / CONFIGS)
            listed.is_planned = bool(configs) and all(Path(name).suffix for name in configs)
        no_plan = "nothing was run yet, or it is no pipeline of this project"
        listed.notes.append("nothing was run yet" if listed.is_planned else no_plan)
        return
    try:
        content = read_json(path)
        for row in content["rows"]:
            _add(values, str(row["backbone"]), str(row["task"]), row["metrics"])
            listed.counts["done"] += 1
        for row in content["unfinished"]:
            failed = row["status"] == "failed"
            listed.counts["failed" if failed else "waiting"] += 1
        listed.seen(path.stat().st_mtime)
        listed.notes.append("only its report is here: fine-tunings are counted")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        listed.notes.append(f"{RESULTS} is damaged, or not of this project; nothing else is here")


# --- numbers ----------------------------------------------------------------------------------


def _add(
    values: dict[tuple[str, str], dict[str, list[float]]], backbone: str, of: str, metrics: Any
) -> None:
    """Add the number that counts of a fine-tuning, or those of a probe, to the values."""
    if not isinstance(metrics, dict):
        return
    plain = [name for name in metrics if str(name).endswith("/AP")][:1]
    for name in plain or [name for name in metrics if str(name).endswith("top1")]:
        value = metrics[name]
        if isinstance(value, int | float) and math.isfinite(value):
            values.setdefault((of, name), {}).setdefault(backbone, []).append(float(value))


def _best(values: dict[tuple[str, str], dict[str, list[float]]]) -> Iterator[Best]:
    for (of, metric), by_backbone in values.items():
        spreads = {name: each for name, some in by_backbone.items() if (each := spread(some))}
        name = max(spreads, key=lambda name: spreads[name].mean)
        yield Best(of, metric, name, spreads[name].mean, spreads[name].std, spreads[name].n)


# --- as text and JSON -------------------------------------------------------------------------


def _name(folder: Path, listed: Listed) -> str:
    """Return where a pipeline lies below the folder, its own name where it is the folder."""
    name = listed.folder.relative_to(folder).as_posix()
    return listed.folder.absolute().name if name == "." else name


def runs_table(folder: Path, pipelines: Iterable[Listed]) -> Table:
    """Return one row a pipeline."""
    table = Table(title=f"pipelines below {printable(folder)}", title_justify="left", box=None,
                  padding=(0, 2, 0, 0), pad_edge=False)  # fmt: skip
    for column in COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column in ("state", "done", "size"))
    for each in pipelines:
        total = sum(each.counts.values())
        failed = f" {each.counts['failed']} of {total}" if each.state == "failed" else ""
        best = []
        of_tasks = [entry for entry in each.best if entry.metric.endswith("/AP")]
        for entry in of_tasks or each.best:
            std = "" if entry.std is None else f" ± {entry.std:.1f}"
            numbers = f"{entry.mean:.1f}{std} ({entry.n})"
            best.append(f"{entry.of} {entry.metric} {numbers} {entry.backbone}")
        when = (
            "" if each.newest is None else f"{datetime.fromtimestamp(each.newest):%Y-%m-%d %H:%M}"
        )
        table.add_row(
            Text(printable(_name(folder, each))),
            Text(each.state + failed, STYLES.get(each.state, "")),
            f"{each.counts['done']} of {total}",
            Text("\n".join(map(printable, best))),
            when,
            "" if each.size is None else size_text(each.size),
        )
    return table


def runs_json(folder: Path, pipelines: Iterable[Listed], notes: list[str]) -> dict[str, Any]:
    """Return the same for machines."""
    return {
        "folder": str(folder.absolute()),
        "notes": notes,
        "pipelines": [
            {
                "pipeline": _name(folder, each),
                "folder": str(each.folder.absolute()),
                "state": each.state,
                "counts": {word: n for word, n in each.counts.items() if n},
                "stages": sum(each.counts.values()),
                "best": [asdict(entry) for entry in each.best],
                "newest": None if each.newest is None
                else datetime.fromtimestamp(each.newest, UTC).isoformat(timespec="seconds"),
                "size": each.size,
                "notes": each.notes,
            }
            for each in pipelines
        ],
    }  # fmt: skip
