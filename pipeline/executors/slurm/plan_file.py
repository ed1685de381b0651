"""A plan as a file: the report job uses the plan of submission time, not today's configs."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.config.schema import PipelineConfig
from pipeline.plan.plan import Plan
from pipeline.stages.files import read_json, write_json
from pipeline.stages.stage import Stage

PLAN = "plan.json"  # in the folder of a report's submission


def write_plan(plan: Plan, path: Path) -> None:
    """Write the resolved plan as JSON."""
    write_json(path, _content(plan))


def is_report_of(plan: Plan, path: Path) -> bool:
    """Return whether a report made from this file is one of `plan`, whatever its jobs ask for."""
    told = read_json(path) if path.exists() else {}
    now = json.loads(json.dumps(_content(plan)))
    for content in (told, now):
        content.get("config", {}).pop("resources", None)
    return all(told.get(key) == now[key] for key in ("config", "stages"))


def _content(plan: Plan) -> dict[str, Any]:
    stages = [
        {key.name: getattr(stage, key.name) for key in fields(Stage) if key.name != "root"}
        | {"inputs": {role: source.name for role, source in stage.inputs.items()}}
        for stage in plan.stages
    ]
    return {
        "config": plan.config.model_dump(mode="json", exclude_unset=True),
        "config_file": str(plan.config_file),
        "overrides": list(plan.overrides),
        "stages": stages,
    }


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
