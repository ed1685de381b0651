"""JSON schemas of the configs, for editors that complete and check YAML.

`run_pipeline.py init --schemas configs/schemas` writes them; a test holds them to the classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_files import BASE_KEY
from pipeline.stages.files import write_text
from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig

CONFIGS: dict[str, type[BaseModel]] = {
    "pipeline": PipelineConfig,
    "pretrain": PretrainConfig,
    "probe": ProbeConfig,
}


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema; any key may come from the file that `_BASE_` names."""
    found = model.model_json_schema()
    found["properties"][BASE_KEY] = {
        "type": "string",
        "description": "config that this one is merged over, beside this file",
    }
    for part in (found, *found.get("$defs", {}).values()):
        part.pop("required", None)
    return found


def write_schemas(folder: Path) -> list[Path]:
    """Write `<config>.schema.json` for every kind of config; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, model in CONFIGS.items():
        paths.append(folder / f"{name}.schema.json")
        write_text(paths[-1], json.dumps(schema(model), indent=1) + "\n")
    return paths
