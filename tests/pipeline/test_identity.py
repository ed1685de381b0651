"""Every key of every config: part of a stage's identity, or left out for a reason that docs print.

`docs/how-numbers-are-made.md` holds the table; it is written by this file's `table()`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config.schema import (
    BackboneConfig,
    PipelineConfig,
    ProbeEntry,
    Resources,
    ResourcesConfig,
    TaskConfig,
)
from pipeline.plan.build import load_plan
from pipeline.stages.stage import identity_of
from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig
from transfer.config.convert import ConvertConfig
from transfer.config.data import CocoData, VocData
from transfer.config.finetune import LEFT_OUT, FinetuneConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "how-numbers-are-made.md"
MODELS: dict[str, type[BaseModel]] = {
    "pipeline": PipelineConfig,
    "pretraining": PretrainConfig,
    "probe": ProbeConfig,
    "conversion": ConvertConfig,
    "fine-tuning": FinetuneConfig,
}
CONFIG = Path("configs/tiny.yaml")


def models_of(kind: Any) -> list[type[BaseModel]]:
    """The config models within an annotation."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    if get_origin(kind) in (Union, UnionType, Annotated, tuple, dict):
        return [model for part in get_args(kind) for model in models_of(part)]
    return []


def mark(model: type[BaseModel], field: FieldInfo) -> dict[str, Any]:
    """The field's own mark, else its model's."""
    extra = field.json_schema_extra or model.model_config.get("json_schema_extra") or {}
    assert isinstance(extra, dict)
    return dict(extra)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key below a model with its mark; what is left out whole is one key."""
    if model is ResourcesConfig:
        yield from keys_of(Resources, f"{prefix}<stage>.")
        return
    for name, field in model.model_fields.items():
        inner = models_of(field.annotation)
        of_field = mark(model, field)
        if not inner or of_field.get("identity") is False:
            yield f"{prefix}{name}", of_field
        for each in inner if of_field.get("identity") is not False else ():
            yield from keys_of(each, f"{prefix}{name}.")


def table() -> str:
    """What is no part of an identity, and why: the table of the docs."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for where, model in MODELS.items():
        for key, of_key in keys_of(model):
            if of_key.get("identity") is False:
                keys = reasons.setdefault((where, of_key["why"]), [])
                keys += [key] if key not in keys else []
    for row in LEFT_OUT:
        reasons.setdefault(("detectron2", row.why), []).extend(
            f"{key}*" if key.endswith(".") else key for key in row.keys
        )
    lines = ["| config | left out | why |", "| --- | --- | --- |"]
    for (where, why), keys in reasons.items():
        lines.append(f"| {where} | {', '.join(f'`{key}`' for key in keys)} | {why} |")
    return "\n".join(lines)


@pytest.mark.parametrize("where", MODELS)
def test_every_key_is_part_of_the_identity_or_says_why_not(where: str) -> None:
    keys = dict(keys_of(MODELS[where]))
    assert len(keys) > 2
    for key, of_key in keys.items():
        assert of_key.get("identity", True) in (True, False, "if given"), key
        assert (of_key.get("identity") is False) == bool(of_key.get("why")), key


def test_the_docs_print_the_table() -> None:
    begin, _, rest = DOCS.read_text("utf-8").partition("<!-- left out -->\n")
    printed, found, _ = rest.partition("\n<!-- end -->")
    assert begin and found and printed == table(), f"wanted in {DOCS.name}:\n{table()}"


def filled(model: type[BaseModel]) -> BaseModel:
    """An instance with every optional section there; nothing is validated."""
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = models_of(field.annotation)
        if inner and "dict" in str(field.annotation):
            values[name] = {str(number): filled(each) for number, each in enumerate(inner)}
        else:
            values[name] = filled(inner[0]) if inner else "before"
    return model.model_construct(**values)


def changed(config: BaseModel) -> Iterator[tuple[str, bool, BaseModel]]:
    """Every key, whether it or what holds it is left out, and the config with another value."""
    for name, field in type(config).model_fields.items():
        left_out = mark(type(config), field).get("identity") is False
        value = getattr(config, name)
        entries = value if isinstance(value, dict) else {None: value}
        for entry, part in entries.items():
            for key, inner_left_out, new in (
                changed(part) if isinstance(part, BaseModel) else [("", False, "now")]
            ):
                whole = new if entry is None else value | {entry: new}
                place = f"{name}.{key}".rstrip(".")
                yield place, left_out or inner_left_out, config.model_copy(update={name: whole})


@pytest.mark.parametrize("model", [PretrainConfig, ProbeConfig, ConvertConfig, FinetuneConfig])
def test_an_identity_changes_with_each_key_and_only_with_those_not_left_out(
    model: type[BaseModel],
) -> None:
    config = filled(model)
    before = identity_of(config)
    for key, left_out, other in changed(config):
        assert (identity_of(other) == before) == left_out, key


# Of a plan: a change of each key, and whether another stage follows from it.
CHANGES: dict[type[BaseModel], dict[str, str]] = {
    PipelineConfig: {
        "name": "name=other",
        "seeds": "seeds=[5, 6]",
        "baseline": "baseline=a",
        "references": "references=[]",
        "num_pictures": "num_pictures=1",
        "output_dir": "output_dir=elsewhere",
        "num_parallel": "num_parallel=4",
    },
    BackboneConfig: {
        "name": "backbones.1.name=other",
        "pretrain": "backbones.1.pretrain=copy.yaml",
        "overrides": "backbones.1.overrides=[log_every=3]",
        "checkpoint": "backbones.3.checkpoint=copy.pth",
        "format": "backbones.3.format=torchvision",
        "encoder": "backbones.3.encoder=query",
        "input": "backbones.3.input={order: BGR}",
        "random": "backbones.0={name: random, pretrain: third.yaml}",
    },
    TaskConfig: {
        "name": "tasks.0.name=other",
        "title": "tasks.0.title=words",
        "config": "tasks.0.config=copy-of-coco.yaml",
        "reference": "tasks.0.reference=coco-mask-rcnn-r50-c4-1x",
        "optimizer": "tasks.0.optimizer=adamw",
        "num_gpus": "tasks.0.num_gpus=2",
        "num_nodes": "tasks.0.num_nodes=2",
        "seeds": "tasks.0.seeds=[7, 8]",
        "overrides": "tasks.0.overrides=[VIS_PERIOD=3]",
    },
    ProbeEntry: {
        "name": "probes.0.name=other",
        "config": "probes.0.config=copy-of-probe.yaml",
        "overrides": "probes.0.overrides=[batch_size=3]",
    },
    Resources: {
        name: f"resources.default={{{name}: {value}}}"
        for name, value in {
            "gpus": "2", "nodes": "2", "cpus_per_gpu": "9", "mem_gb": "3", "timeout_min": "99",
            "max_jobs": "2", "save_s": "9", "partition": "p", "account": "a", "qos": "q",
            "constraint": "c", "array_parallelism": "3", "setup": "[x]", "extra": "{nice: 1}",
        }.items()
    },
}  # fmt: skip


@pytest.fixture
def whole(project: Path) -> Path:
    """Return the small project with a checkpoint, a probe, and a copy of every config."""
    for name in ("given.pth", "copy.pth"):
        Path(name).write_bytes(b"weights")
    content = yaml.safe_load(CONFIG.read_text("utf-8"))
    content["backbones"].append({"name": "given", "checkpoint": "given.pth"})
    content["tasks"][0]["overrides"] = ["SOLVER.BASE_LR=0.001"]  # the default, for both optimisers
    content["probes"] = [{"name": "p", "config": "probe.yaml"}]
    CONFIG.write_text(yaml.safe_dump(content), encoding="utf-8")
    for split in ("train", "val"):
        shutil.copytree("data/images", f"data/labelled/{split}/one")
    probe = {
        "data": {"name": "labelled", "root": "data/labelled", "format": "imagefolder"},
        "random_arch": "resnet18",
        "knn": {},
    }
    Path("configs/probe.yaml").write_text(yaml.safe_dump(probe), encoding="utf-8")
    third = yaml.safe_load(Path("configs/a.yaml").read_text("utf-8")) | {"seed": 3}
    Path("configs/third.yaml").write_text(yaml.safe_dump(third), encoding="utf-8")
    for name, copy in (("a", "copy"), ("coco", "copy-of-coco"), ("probe", "copy-of-probe")):
        shutil.copy(f"configs/{name}.yaml", f"configs/{copy}.yaml")
    return project


def test_the_keys_of_a_plan_do_what_their_marks_say(whole: Path) -> None:
    def signatures(*overrides: str) -> list[str]:
        return sorted(stage.signature for stage in load_plan(CONFIG, list(overrides)).stages)

    before = signatures()
    for model, changes in CHANGES.items():
        keys = {
            name: mark(model, field)
            for name, field in model.model_fields.items()
            if not models_of(field.annotation) or name == "input"
        }
        assert keys.keys() == changes.keys()
        for name, change in changes.items():
            left_out = keys[name].get("identity") is False
            assert (signatures(change) == before) == left_out, f"{model.__name__}.{name}"


def test_sets_of_a_plan_are_known_as_those_of_a_task() -> None:
    assert models_of(PipelineConfig.model_fields["datasets"].annotation) == [CocoData, VocData]
