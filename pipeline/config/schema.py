"""The pipeline config: backbones, tasks, seeds, probes, data sets, resources.

Config files are named relative to the file that names them; data and output folders relative to the
working directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.config.resources import ResourcesConfig
from transfer.config.convert import StatedInput
from transfer.config.data import PATH, DetectionData, left_out
from transfer.config.finetune import Optimizer


def _in_one_part(name: str) -> str:
    if "--" in name:
        raise ValueError(
            f"{name!r} holds '--', which parts the names of a stage (a--b with c would be a with "
            "b--c); rename it: what is finished is found again under its old name"
        )
    return name


Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]
Name = Annotated[Slug, AfterValidator(_in_one_part)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """A frozen part of a config that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


LABEL = left_out("a label")
SHOWN = left_out("published rows that stand beside the results")
FOLDER = left_out("where the run folders are")
CONFIG = left_out("a path; what the config says enters")
CHANGES = left_out("applied to the config, and what it then says enters")


class BackboneConfig(Section):
    """Where a backbone comes from: a pretraining config, an existing checkpoint, or nothing.

    `input` states how a checkpoint's network was fed, over what is known of its family.
    """

    name: Name = Field(json_schema_extra=LABEL)
    pretrain: Path | None = Field(default=None, json_schema_extra=CONFIG)
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra=CHANGES)
    checkpoint: Path | None = Field(default=None, json_schema_extra=PATH)
    format: str | None = None
    encoder: str | None = None
    input: StatedInput | None = None
    random: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [self.pretrain is not None, self.checkpoint is not None, self.random]
        if sum(given) != 1:
            raise ValueError("give exactly one of pretrain, checkpoint and random: true")
        if self.overrides and self.pretrain is None:
            raise ValueError("overrides go with pretrain")
        if (self.format or self.encoder or self.input) and self.checkpoint is None:
            raise ValueError("format, encoder and input go with checkpoint")
        return self


class TaskConfig(Section):
    """A detection task: a detectron2 config and `KEY=VALUE` changes to it.

    Published rows of its data, detector and schedule stand beside its results; `reference` names
    a table that does so though one of them differs (see `pipeline.config.references`).
    """

    name: Name = Field(json_schema_extra=LABEL)
    config: Path = Field(json_schema_extra=CONFIG)
    title: str = Field(default="", json_schema_extra=LABEL)
    reference: str | None = Field(default=None, json_schema_extra=SHOWN)
    optimizer: Optimizer = "sgd"
    num_gpus: int = Field(default=1, ge=1, description="GPUs on each node")
    num_nodes: int = Field(default=1, ge=1)
    seeds: tuple[Seed, ...] | None = Field(default=None, description="instead of the pipeline's")
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra=CHANGES)


class ProbeEntry(Section):
    """A probe: a probe config and `key=value` changes to it."""

    name: Name = Field(json_schema_extra=LABEL)
    config: Path = Field(json_schema_extra=CONFIG)
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra=CHANGES)


class PipelineConfig(Section):
    """The whole plan: every backbone is fine-tuned on every task with every seed, and probed.

    `references` are files of published rows besides the built-in ones, one path or several.
    """

    name: Slug = Field(json_schema_extra=FOLDER)
    backbones: tuple[BackboneConfig, ...] = Field(min_length=1)
    tasks: tuple[TaskConfig, ...] = ()
    seeds: tuple[Seed, ...] = ()
    probes: tuple[ProbeEntry, ...] = ()
    datasets: dict[Slug, DetectionData] = {}
    references: tuple[Path, ...] = Field(default=(), json_schema_extra=SHOWN)
    num_pictures: int = Field(default=6, ge=1, json_schema_extra=left_out("drawn of the result"))
    output_dir: Path = Field(default=Path("runs"), json_schema_extra=FOLDER)
    num_parallel: int = Field(
        default=1,
        ge=1,
        description="stages at a time on one machine",
        json_schema_extra=left_out("stages do not know of each other"),
    )
    resources: ResourcesConfig = ResourcesConfig()

    @property
    def root(self) -> Path:
        """Return the folder of this pipeline's runs."""
        return self.output_dir / self.name

    @field_validator("references", mode="before", json_schema_input_type=tuple[Path, ...] | Path)
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if not self.tasks and not self.probes:
            raise ValueError("nothing to do with the backbones; give tasks, probes or both")
        if not self.seeds and any(not task.seeds for task in self.tasks):
            raise ValueError("seeds: the tasks need at least one")
        return self

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for what, names in (
            ("backbones", [entry.name for entry in self.backbones]),
            ("tasks", [entry.name for entry in self.tasks]),
            ("probes", [entry.name for entry in self.probes]),
            ("seeds", [str(seed) for seed in self.seeds]),
            *((f"seeds of {task.name}", list(map(str, task.seeds or ()))) for task in self.tasks),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: named twice: {', '.join(twice)}")
        return self
