"""Folders of runs: of which kind of run one is, and what lies there where a plan finds nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.plan.plan import CONFIGS, results_of_another
from pipeline.stages.run_folder import JOB, METRICS
from pipeline.stages.stage import SIGNATURE_DIGITS, STAGE_KINDS

if TYPE_CHECKING:
    from pipeline.config.schema import PipelineConfig
    from pipeline.plan.plan import Plan

RUN_FOLDER = re.compile(rf".+-[0-9a-f]{{{SIGNATURE_DIGITS}}}")
PIPELINE, PRETRAINING, FINE_TUNING = "pipeline", "pretraining", "fine-tuning"
MARKS = {  # one of these files is enough; a stage's folder has those of what it runs as well
    "stage of a pipeline": (JOB,),
    FINE_TUNING: ("effective_config.yaml",),
    PRETRAINING: ("backbone.pth", "last.pth", "previous.pth", METRICS),
}
MAX_NAMED = 6


def run_folders(root: Path) -> list[Path]:
    """Return the folders of stages below a pipeline's folder, by their names alone."""
    return sorted(_runs(root))


def _runs(root: Path) -> Iterator[Path]:
    folders = (path for kind in STAGE_KINDS for path in (root / kind).glob("*-*"))
    return (path for path in folders if RUN_FOLDER.fullmatch(path.name) and path.is_dir())


def folder_fault(folder: Path, wanted: str, key: str) -> str | None:
    """Return that a folder is one of another kind of run than `wanted`, and what shows it, or None.

    `key` is what names the folder. Two kinds in one would each take the other's files for theirs.
    """
    is_pipeline = _is_of_pipeline(folder)
    if is_pipeline and wanted == PIPELINE:
        return None
    marks = [(kind, name) for kind, names in MARKS.items() for name in names]
    shown = [(kind, name) for kind, name in marks if (folder / name).is_file()][:1]
    if is_pipeline:
        runs = [path.relative_to(folder).as_posix() for path in run_folders(folder)]
        shown.insert(0, (PIPELINE, [*runs, CONFIGS][0]))
    if not shown or wanted in dict(shown):
        return None
    kind, name = shown[0]
    return f"{folder}: is the folder of a {kind} ({name} lies there); give another {key}"


def place_faults(config: PipelineConfig) -> list[str]:
    """Return why a pipeline's runs cannot lie where `output_dir` and `name` say."""
    root, parent = config.root, config.output_dir
    if fault := folder_fault(root, PIPELINE, "`name` or `output_dir`"):
        return [fault]
    if any(_runs(parent)) and not _is_of_pipeline(root):
        return [
            f"output_dir: {parent} is itself the folder of a pipeline's runs, wanted the one in "
            f"which it lies: output_dir={parent.parent}, and its `name`: {parent.absolute().name}"
        ]
    return []


def nothing_begun(config: PipelineConfig) -> str | None:
    """Return where a pipeline's runs were looked for and what lies there, or None if some do."""
    root, parent = config.root, config.output_dir
    if any(_runs(root)):
        return None
    if parent.is_dir():
        folders = sorted(path for path in parent.iterdir() if path.is_dir() and path != root)
        pipelines = [path.name for path in folders if any(_runs(path))]  # not only planned
        listed = _listed(pipelines or [path.name for path in folders]) or "no other folder"
        state = "it holds no run" if root.is_dir() else "it is not there"
        why = f"{state}; {parent} holds {'the pipelines ' if pipelines else ''}{listed}"
    else:
        why = f"there is no folder {parent.absolute()}"
    return (
        f"nothing was run in {root}: {why}; output_dir ({parent}) is the folder in which that of "
        f"this pipeline ({config.name}) lies"
    )


def others_runs(root: Path) -> str | None:
    """Return what lies in a pipeline's folder, for a plan of which nothing does."""
    names = [path.relative_to(root).as_posix() for path in run_folders(root)]
    return f"{root} holds no run of this plan as it is now, but {_listed(names)}" if names else None


def left_out(plan: Plan) -> str | None:
    """Return which results of the plan that was last run in the folder are not this plan's."""
    names = results_of_another(plan)
    if not names:
        return None
    return (
        f"the plan that was last run in {plan.config.root} has {len(names)} results that are not "
        f"of this one: {_listed(names)}; give the same key=value changes as to that run, or put "
        "back what was edited in its configs since"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _is_of_pipeline(folder: Path) -> bool:
    return (folder / CONFIGS).is_file() or any(_runs(folder))
