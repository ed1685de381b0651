"""docs/reference.md, written from the config models: `python -m tests.docs.reference` writes it."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config.json_schema import json_schema
from pipeline.config.schema import PipelineConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig
from transfer.config.convert import ConvertConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"
MODELS: dict[str, tuple[type[BaseModel], str]] = {
    "Pipeline": (
        PipelineConfig,
        "What `run_pipeline.py` reads; `configs/pipeline/` holds examples.",
    ),
    "Pretraining": (PretrainConfig, "What `pretrain.py` reads; `configs/pretrain/`."),
    "Probe": (ProbeConfig, "What `probe.py` reads; `configs/pretrain/probe_*.yaml`."),
    "Conversion": (ConvertConfig, "What the options of `convert_to_detectron2.py` say."),
}
HEAD = """# All config keys

Written from the program's own config models by `python -m tests.docs.reference`; do not edit.
A key without a default may be left out unless it says **needed**. Values are YAML; an override is
`key=value` behind a command, with dots into sections and numbers into lists:
`backbones.1.name=mine`. What every config may have besides is `_BASE_: other.yaml`, a file whose
keys are taken where this one is silent.

**Result**: whether another value makes another result, that is another stage, or why not
([the rule](how-numbers-are-made.md#what-makes-a-result-the-same)).

An editor that knows YAML schemas completes and checks keys: `run_pipeline.py init mine.yaml` writes
a config that names its schema, `init --schemas FOLDER` all schemas. A task is a plain
[detectron2 config](https://detectron2.readthedocs.io/en/latest/modules/config.html);
[detection.md](detection.md) tells of the few keys that are this project's.
"""
TITLES = {
    "CocoData": "Data in COCO's layout",
    "KnnConfig": "k-NN",
    "LossConfig": "Loss, whitening",
    "MlflowTracking": "MLflow",
    "ProbeEntry": "Probe of a plan",
    "ResourcesConfig": "Resources by kind of stage",
    "TrackingConfig": "Trackers",
    "TrackioTracking": "Trackio",
    "VocData": "Data in VOC's layout",
    "WandbTracking": "Weights & Biases",
    "WeightedKnnConfig": "Weighted k-NN",
}
RANGES = (
    ("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"),
)  # fmt: skip
LARGE = {2**20: "2²⁰", 2**24: "2²⁴", 2**31: "2³¹", 2**63: "2⁶³"}
NOUNS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}


def kind(schema: dict[str, Any]) -> str:
    """What values a property takes, in words."""
    options = schema.get("anyOf") or schema.get("oneOf")
    if "$ref" in schema:
        return link(schema["$ref"].rpartition("/")[2])
    if options:
        return " or ".join(kind(option) for option in options if option.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] in ("array", "object"):
        return several(schema)
    noun = "path" if schema.get("format") == "path" else NOUNS[schema["type"]]
    ranges = [
        f"{sign} {LARGE.get(schema[key], f'{schema[key]:,g}')}"
        for key, sign in RANGES
        if key in schema
    ]
    return " ".join([noun, ", ".join(ranges)]).strip()


def several(schema: dict[str, Any]) -> str:
    """What values a list or a mapping takes."""
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} numbers"
    if schema["type"] == "array":
        return f"list of {kind(schema['items'])}"
    inner = [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]
    values = [kind(value) for value in inner if isinstance(value, dict)]
    return f"mapping of names to {values[0]}" if values else "mapping"


@cache
def sections() -> dict[str, dict[str, Any]]:
    """The schema of every section of every config, by the name of its model."""
    wholes = {model.__name__: json_schema(model) for model, _ in MODELS.values()}
    return wholes | {
        name: part for whole in wholes.values() for name, part in whole.get("$defs", {}).items()
    }


def heading(name: str) -> str:
    """A model's name in words: `TrainingProbeConfig` is a training probe; a loss has its own."""
    loss = sections()[name].get("properties", {}).get("name", {}).get("const")
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Config")).capitalize()
    return TITLES.get(name, words) if loss is None else f"Loss {loss}"


def anchor(title: str) -> str:
    """A heading's address in the page, as GitHub and the site make it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def link(name: str) -> str:
    """A link to a model's heading."""
    return f"[{heading(name)}](#{anchor(heading(name))})"


def default(schema: dict[str, Any], is_required: bool) -> str:
    """The default as YAML has it; nothing where it has to be given or is a section of its own."""
    value = schema.get("default")
    if is_required or value is None or isinstance(value, dict):
        return ""
    if isinstance(value, list):
        return f"`[{', '.join(shown(entry) for entry in value)}]`" if len(value) < 9 else ""
    return f"`{shown(value)}`" if value != "" else ""


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rows(schema: dict[str, Any], of_all: dict[str, Any]) -> Iterator[str]:
    """A table row for each property."""
    for key, value in schema["properties"].items():
        mark = value.get("identity", of_all.get("identity", True))
        why = value.get("why", of_all.get("why"))
        cells = [
            f"`{key}`",
            kind(value).replace("|", "\\|"),
            # one fixed value tells which of several sections it is, and has to be written
            "**needed**"
            if key in schema.get("required", ()) or "const" in value
            else default(value, False),
            " ".join(value["description"].split()),
            f"no: {why}" if mark is False else "by key" if "](#" in kind(value) else "yes",
        ]
        yield f"| {' | '.join(cells)} |"


def page() -> str:
    lines, told = [HEAD], set()
    for title, (model, where) in MODELS.items():
        whole = json_schema(model)
        sections = {model.__name__: whole} | whole.get("$defs", {})
        lines += [f"## {title}", "", where, ""]
        for name, schema in sections.items():
            if name not in told and "properties" in schema:
                told.add(name)
                lines += [] if name == model.__name__ else [f"### {heading(name)}", ""]
                lines += [schema["description"], ""]
                lines += ["| key | values | default | meaning | result |", f"|{' --- |' * 5}"]
                lines += [*rows(schema, schema), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
