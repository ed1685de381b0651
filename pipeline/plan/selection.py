"""A part of a plan: some stages and everything they need."""

from __future__ import annotations

from dataclasses import replace

from pipeline.config.suggestions import unknown
from pipeline.plan.build import Plan
from pipeline.stages.stage import Stage


def select(plan: Plan, names: list[str]) -> Plan:
    """Return the plan of the named stages (`kind/slug`) and what they need, in the plan's order.

    Raises:
        ValueError: a stage of that name is not in the plan.
    """
    by_name = {stage.name: stage for stage in plan.stages}
    faults = [f"--only: {unknown('stage', name, by_name)}" for name in names if name not in by_name]
    if faults:
        raise ValueError("\n".join(faults))
    wanted: set[str] = set()
    for name in names:
        _add(by_name[name], wanted)
    return replace(plan, stages=tuple(stage for stage in plan.stages if stage.name in wanted))


def _add(stage: Stage, wanted: set[str]) -> None:
    wanted.add(stage.name)
    for source in stage.inputs.values():
        _add(source, wanted)
