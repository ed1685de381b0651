"""A plan: the stages that a pipeline config asks for, and a part of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.schema import PipelineConfig
from pipeline.messages import unknown
from pipeline.stages.stage import Stage


@dataclass(frozen=True)
class Plan:
    """All stages, inputs before what needs them, and the config they come from."""

    config: PipelineConfig
    config_file: Path
    overrides: tuple[str, ...]
    stages: tuple[Stage, ...]


def select(plan: Plan, names: list[str]) -> Plan:
    """Return the plan of the named stages (`kind/slug`) and what they need, in the plan's order.

    Raises:
        ValueError: a stage of that name is not in the plan.
    """
    by_name = {stage.name: stage for stage in plan.stages}
    faults = [f"--only: {unknown('stage', name, by_name)}" for name in names if name not in by_name]
    if faults:
        raise ValueError("\n".join(faults))
    needed = set(names)
    for stage in reversed(plan.stages):  # inputs stand before what needs them
        if stage.name in needed:
            needed |= {source.name for source in stage.inputs.values()}
    return replace(plan, stages=tuple(stage for stage in plan.stages if stage.name in needed))
