"""GPU hours of a plan: from what like stages took, else from their time limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from pipeline.executors.slurm.arrays import JobGroup
from pipeline.plan.plan import Plan
from pipeline.stages.files import read_json
from pipeline.stages.run_folder import MANIFEST, read_state
from pipeline.stages.stage import Stage


@dataclass(frozen=True)
class Estimate:
    """GPU hours of a group, and whether they were `measured` or are the `time limit`."""

    hours: float
    source: str


def gpu_hours(plan: Plan, groups: Sequence[JobGroup]) -> dict[str, Estimate]:
    """Return an estimate for every group; a measured time is that of done stages of this plan."""
    measured = measured_hours(plan.stages)
    estimates = {}
    for group in groups:
        limit = group.resources.timeout_min / 60
        keys = [(stage.kind, stage.task) for stage in group.stages] or [(group.kind, None)]
        hours = group.resources.num_gpus * sum(measured.get(key, limit) for key in keys)
        known = sum(key in measured for key in keys)
        source = "measured" if known == len(keys) else "measured and time limit"
        estimates[group.name] = Estimate(hours, source if known else "time limit")
    return estimates


def measured_hours(stages: Sequence[Stage]) -> dict[tuple[str, str | None], float]:
    """Return the mean hours of done stages by kind and task."""
    times: dict[tuple[str, str | None], list[float]] = {}
    for stage in stages:
        if read_state(stage).status == "done":
            made = read_json(stage.run_dir / MANIFEST).get("provenance", {})
            if made.get("wall_time_s") is not None:
                times.setdefault((stage.kind, stage.task), []).append(made["wall_time_s"] / 3600)
    return {key: mean(values) for key, values in times.items()}
