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

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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
    """how tables call it"""
    pretrain: Path | None = Field(default=None, json_schema_extra=CONFIG)
    """a pretraining config, relative to this file; give one of this, `checkpoint` and `random`"""
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra=CHANGES)
    """`key=value` changes to the pretraining config"""
    checkpoint: Path | None = Field(default=None, json_schema_extra=PATH)
    """a file of weights, relative to the working directory"""
    format: str | None = None
    """the checkpoint's family; recognised by its content unless given"""
    encoder: str | None = None
    """the encoder to take, where the file holds several; the family's unless given"""
    input: StatedInput | None = None
    """how the checkpoint's network was fed; as file and family say unless given"""
    random: bool = False
    """no pretraining: the baseline"""

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
    """how run folders call it"""
    config: Path = Field(json_schema_extra=CONFIG)
    """a detectron2 config, relative to this file"""
    title: str = Field(default="", json_schema_extra=LABEL)
    """how tables call it; `name` unless given"""
    reference: str | None = Field(default=None, json_schema_extra=SHOWN)
    """a table of published rows to stand beside it though data, detector or schedule differ"""
    optimizer: Optimizer | None = None
    """instead of the config's own (its `SOLVER.OPTIMIZER`, `sgd` where it has none); another one
    wants its rate, `SOLVER.BASE_LR`, among the overrides"""
    num_gpus: int = Field(default=1, ge=1, description="GPUs on each node")
    num_nodes: int = Field(default=1, ge=1)
    """machines of one fine-tuning"""
    seeds: tuple[Seed, ...] | None = Field(default=None, description="instead of the pipeline's")
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra=CHANGES)
    """`KEY=VALUE` changes to the detectron2 config"""


class ProbeEntry(Section):
    """A probe: a probe config and `key=value` changes to it."""

    name: Name = Field(json_schema_extra=LABEL)
    """how tables call it"""
    config: Path = Field(json_schema_extra=CONFIG)
    """a probe config, relative to this file"""
    overrides: tuple[str, ...] = Field(default=(), json_schema_extra=CHANGES)
    """`key=value` changes to the probe config"""


class PipelineConfig(Section):
    """The whole plan: every backbone is fine-tuned on every task with every seed, and probed.

    `references` are files of published rows besides the built-in ones, one path or several.
    """

    name: Slug = Field(json_schema_extra=FOLDER)
    """of the folder of runs; one config a name"""
    backbones: tuple[BackboneConfig, ...] = Field(min_length=1)
    """what is compared; the first `random: true` is the baseline"""
    tasks: tuple[TaskConfig, ...] = ()
    """what they are fine-tuned on"""
    seeds: tuple[Seed, ...] = ()
    """of the fine-tunings; `mean ± std` is over them"""
    probes: tuple[ProbeEntry, ...] = ()
    """what else is measured of every backbone"""
    datasets: dict[Slug, DetectionData] = {}
    """detection sets of your own, by the names that tasks use"""
    references: tuple[Path, ...] = Field(default=(), json_schema_extra=SHOWN)
    """files of published rows besides the built-in ones, relative to this file"""
    num_pictures: int = Field(default=6, ge=1, json_schema_extra=left_out("drawn of the result"))
    """pictures of detections that every fine-tuning draws"""
    output_dir: Path = Field(default=Path("runs"), json_schema_extra=FOLDER)
    """the folder in which the folder `name` of this pipeline's runs lies, relative to the working
    directory"""
    num_parallel: int = Field(
        default=1,
        ge=1,
        description="stages at a time on one machine",
        json_schema_extra=left_out("stages do not know of each other"),
    )
    resources: ResourcesConfig = ResourcesConfig()
    """what the jobs of each kind of stage ask a cluster for"""

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
