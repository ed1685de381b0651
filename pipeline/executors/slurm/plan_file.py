"""A plan as a file: the report job uses the plan of submission time, not today's configs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from pipeline.config.schema import PipelineConfig
from pipeline.plan.plan import Plan
from pipeline.stages.files import read_json, write_json
from pipeline.stages.stage import Stage


def write_plan(plan: Plan, path: Path) -> None:
    """Write the resolved plan as JSON."""
    stages = [
        {key.name: getattr(stage, key.name) for key in fields(Stage) if key.name != "root"}
        | {"inputs": {role: source.name for role, source in stage.inputs.items()}}
        for stage in plan.stages
    ]
    content = {
        "config": plan.config.model_dump(mode="json", exclude_unset=True),
        "config_file": str(plan.config_file),
        "overrides": list(plan.overrides),
        "stages": stages,
    }
    write_json(path, content)


def read_plan(path: Path) -> Plan:
    """Return the plan in a file; relative paths mean what they meant when it was written."""
    content = read_json(path)
    config = PipelineConfig.model_validate(content["config"])
    stages: dict[str, Stage] = {}
    for entry in content["stages"]:
        inputs = {role: stages[name] for role, name in entry["inputs"].items()}
        stage = Stage(**(entry | {"inputs": inputs, "root": config.root}))
        stages[stage.name] = stage
    return Plan(
        config, Path(content["config_file"]), tuple(content["overrides"]), tuple(stages.values())
    )
