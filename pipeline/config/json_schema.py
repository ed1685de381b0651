"""JSON schemas of the configs, each key described by the docstring below its field.

pydantic could take these texts itself, but at the start of every command: they stand in the source
alone, which it would read and parse anew each time.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_files import BASE_KEY
from pipeline.stages.files import write_text
from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig

SCHEMAS: dict[str, type[BaseModel]] = {
    "pipeline.schema.json": PipelineConfig,
    "pretrain.schema.json": PretrainConfig,
    "probe.schema.json": ProbeConfig,
}


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a config; a key's description is the docstring below its field."""
    return model.model_json_schema(schema_generator=_Described)


def write_schemas(folder: Path, names: Iterable[str]) -> list[Path]:
    """Write JSON schemas of configs, for editors that complete and check YAML; return the paths.

    Any key may come from the file that `_BASE_` names, so that none is required.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        schema = json_schema(SCHEMAS[name])
        schema["properties"][BASE_KEY] = {
            "type": "string",
            "description": "config that this one is merged over, beside this file",
        }
        for part in (schema, *schema.get("$defs", {}).values()):
            part.pop("required", None)
        write_text(folder / name, json.dumps(schema, indent=1) + "\n")
    return [folder / name for name in names]


class _Described(GenerateJsonSchema):
    """Schemas in which a field without a description has the docstring below it."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Return the schema of a model, its own fields and those it inherits described."""
        content = super().model_schema(schema)
        for base in reversed(schema["cls"].__mro__):
            if issubclass(base, BaseModel) and base is not BaseModel:
                for name, text in field_docstrings(base).items():
                    content["properties"][name].setdefault("description", text)
        return content


@cache
def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the text below each field that a model's own source has, by the field's name."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for line, below in pairwise(definition.body):
        match line, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = inspect.cleandoc(text)
    return texts
