"""The pipeline config: backbones, tasks, seeds, probes, data sets, resources.

Config files are named relative to the file that names them; data and output folders relative to the
working directory. Of the resources that jobs ask a cluster for only `gpus` and `nodes` of a
pretraining change a result: they say how many processes share a batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.config.tracking import TrackingConfig
from pipeline.stages.files import unknown
from pipeline.stages.stage import STAGE_KINDS
from transfer.config.convert import StatedInput
from transfer.config.data import PATH, DetectionData, left_out
from transfer.config.finetune import Optimizer

REPORT = "report"
SET_BY = {
    "array": "array_parallelism",
    "job-name": "the name of the pipeline",
    "nodes": "nodes",
    "ntasks": "gpus and nodes",
    "ntasks-per-node": "gpus",
    "cpus-per-task": "cpus_per_gpu",
    "cpus-per-gpu": "cpus_per_gpu",
    "gpus": "gpus",
    "gpus-per-node": "gpus",
    "mem": "mem_gb",
    "time": "timeout_min",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "signal": "save_s",
    "dependency": "nothing: it follows from the plan",
    "kill-on-invalid-dep": "nothing: it is always on",
    "requeue": "nothing: it is always on",
    "no-requeue": "max_jobs: 1",
    "open-mode": "nothing: logs are appended to",
    "output": "nothing: see `status` for the logs",
    "error": "nothing: see `status` for the logs",
    "wrap": "nothing: the command is the stage",
    "chdir": "nothing: start from the folder you want",
    "wait": "nothing: `status --watch` waits",
    "parsable": "nothing: `status --json` is for machines",
    "quiet": "nothing: sbatch's answer names the job",
    "test-only": "nothing: `run` asks it before it submits",
    "clusters": "SLURM_CLUSTERS in the environment, which all commands read",
}
CONFLICTS = {  # options that say otherwise what a key of ours says
    "mem_gb": ("mem-per-cpu", "mem-per-gpu", "exclusive"),
    "gpus": ("gpus-per-task", "gpus-per-socket", "gres", "tres-per-node", "tres-per-task"),
}
GENERIC = ("gres", "tres-per-node", "tres-per-task")  # for GPUs and whatever else a site counts

ENTERS: dict[str, Any] = {"identity": True}
Word = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
IMAGE = "IMAGE"


class Container(BaseModel):
    """An image that stages run in on a cluster, and the words that start Python there."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra=left_out("what a job asks a cluster for"),
    )

    image: Word
    """a file or folder that all nodes see; with a colon, a name that `command` knows"""
    command: tuple[Word, ...] = ("apptainer", "exec", "--nv", IMAGE, "python")
    """words that start Python in it, of which `IMAGE` is the image; no shell reads them"""

    @field_validator("command")
    @classmethod
    def _check_command(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if command.count(IMAGE) != 1 or command[0] == IMAGE:
            raise ValueError(
                f"{' '.join(command) or 'no word'}: wanted the word {IMAGE} once, behind what "
                f"starts it, such as [apptainer, exec, --nv, {IMAGE}, python]"
            )
        return command

    @property
    def path(self) -> Path | None:
        """Return where the image is, None if it has a name that only `command` knows."""
        return None if ":" in self.image else Path(self.image).absolute()

    @property
    def python(self) -> tuple[str, ...]:
        """Return the words that start Python in the image."""
        image = str(self.path or self.image)
        return tuple(image if word == IMAGE else word for word in self.command)


class Resources(BaseModel):
    """Resources of one kind of stage, in a user's units; `gpus` and `mem_gb` are for each node."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra=left_out("what a job asks a cluster for"),  # but for `gpus` and `nodes`
    )

    gpus: int = Field(default=0, ge=0, description="GPUs on each node", json_schema_extra=ENTERS)
    nodes: int = Field(default=1, ge=1, json_schema_extra=ENTERS)
    """machines of one job"""
    cpus_per_gpu: int = Field(
        default=4, ge=1, description="CPU cores a GPU, or of a job without GPUs"
    )
    mem_gb: float | None = Field(default=None, gt=0, description="memory of each node, GB")
    timeout_min: int = Field(default=60, ge=1, description="time limit of one job, minutes")
    max_jobs: int = Field(default=20, ge=1, description="jobs in which a stage may be continued")
    save_s: int = Field(default=120, ge=1, description="seconds before the limit to save at")
    partition: Word | None = None
    """SLURM's partition; the cluster's default unless given"""
    account: Word | None = None
    """SLURM's account"""
    qos: Word | None = None
    """SLURM's quality of service"""
    constraint: Word | None = None
    """features that the nodes must have"""
    array_parallelism: int = Field(default=256, ge=1, description="tasks of an array at a time")
    setup: tuple[Annotated[str, Field(pattern=r"^[^\x00]+$")], ...] = ()
    """shell lines before the command, such as `module load cuda`"""
    container: Container | None = None
    """an image that the stages run in; the machine's own Python unless given"""
    extra: dict[Word, int | float | bool | Word] = {}
    """any other option of sbatch by its name, such as `{exclude: node7}`"""

    @field_validator("extra")
    @classmethod
    def _check_extra(cls, extra: dict[str, Any]) -> dict[str, Any]:
        faults = []
        for name in extra:
            key = flag_name(name)
            if key in SET_BY:
                faults.append(f"{name}: is set by {SET_BY[key]}")
            elif not all(character.isalnum() or character == "-" for character in key):
                faults.append(f"{name}: not the name of an sbatch option")
        if faults:
            raise ValueError("; ".join(faults))
        return extra

    def conflicts(self) -> list[str]:
        """Return which options of `extra` contradict a key, and each other."""
        faults = []
        for key in CONFLICTS:
            if key in self.model_fields_set and getattr(self, key):
                for name in self.extra_options(key):
                    faults.append(f"extra.{name} and {key} contradict each other; give one of them")
        if {"mem-per-cpu", "mem-per-gpu"} <= {*self.extra_options("mem_gb")}:
            faults.append("extra.mem-per-cpu and extra.mem-per-gpu contradict each other")
        return faults

    def extra_options(self, key: str) -> list[str]:
        """Return the options of `extra` that say what a key of `CONFLICTS` says."""
        given = {flag_name(name): value for name, value in self.extra.items() if value is not False}
        names = [name for name in CONFLICTS[key] if name in given]
        return [name for name in names if name not in GENERIC or "gpu" in str(given[name])]

    @property
    def num_gpus(self) -> int:
        """Return the GPUs of one job."""
        return self.gpus * self.nodes

    def tasks_per_node(self, kind: str) -> int:
        """Return the processes that SLURM starts on each node.

        Pretraining has one a GPU; detectron2 starts its own, so the others have one a node.
        """
        return max(self.gpus, 1) if kind == "pretrain" else 1

    def num_processes(self, kind: str) -> int:
        """Return the processes of a stage on all nodes, which a pretraining's result depends on."""
        return self.nodes * self.tasks_per_node(kind)

    def cpus_per_task(self, kind: str) -> int:
        """Return the CPU cores of each process that SLURM starts."""
        return self.cpus_per_gpu * max(self.gpus, 1) // self.tasks_per_node(kind)


class ResourcesConfig(BaseModel):
    """Resources by kind of stage; what a kind leaves out is taken from `default`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Resources] = Field(init=False)

    default: Resources = Resources()
    """of every kind of stage, under what the kind itself says"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = [*STAGE_KINDS, REPORT]
        given = self.__pydantic_extra__ or {}
        names = ["default", *known]
        faults = [unknown("stage", name, names) for name in given if name not in known]
        for kind in known:
            merged = self.of(kind)
            faults += [f"{kind}: {fault}" for fault in merged.conflicts()]
            if merged.max_jobs > 1 and merged.save_s >= merged.timeout_min * 60:
                faults.append(
                    f"{kind}: to save {merged.save_s} s (save_s) before the end of "
                    f"{merged.timeout_min} min (timeout_min) is before the start; wanted less"
                )
        if REPORT in given and given[REPORT].container:
            faults.append("report: container: the Python that submits makes the report; drop it")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def of(self, kind: str) -> Resources:
        """Return the resources of a kind of stage."""
        of_kind = (self.__pydantic_extra__ or {}).get(kind, Resources())
        given = {key: getattr(of_kind, key) for key in of_kind.model_fields_set}
        return self.default.model_copy(update=given)


def flag_name(name: str) -> str:
    """Return an sbatch option's name as the command line spells it."""
    return name.replace("_", "-").lstrip("-")


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


def _not_a_number(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError("wanted a list: [0, 1, 2] are three seeds, [3] is the seed 3 alone")
    return value


Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_not_a_number)]


class Section(BaseModel):
    """A frozen part of a config that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


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
    """no pretraining: the baseline, unless the plan names another"""

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
    seeds: Seeds | None = Field(default=None, description="instead of the pipeline's")
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
    """what is compared"""
    baseline: str | None = Field(
        default=None, json_schema_extra=left_out("what finished results are compared with")
    )
    """the backbone that differences, their intervals and p are to; the first `random: true` unless
    given, none without one"""
    tasks: tuple[TaskConfig, ...] = ()
    """what they are fine-tuned on"""
    seeds: Seeds = ()
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
        description="stages at a time on one machine; each has GPUs of its own, and waits for as "
        "many as its `gpus` or `num_gpus` say, 1 unless given; `status` shows which",
        json_schema_extra=left_out("stages do not know of each other"),
    )
    resources: ResourcesConfig = ResourcesConfig()
    """what the jobs of each kind of stage ask a cluster for"""
    tracking: TrackingConfig = Field(
        default=TrackingConfig(), json_schema_extra=left_out("where results are shown besides")
    )
    """trackers that runs are shown in, such as `{wandb: {project: mine}}`; none unless given"""

    @property
    def root(self) -> Path:
        """Return the folder of this pipeline's runs."""
        return self.output_dir / self.name

    @field_validator("baseline")
    @classmethod
    def _is_a_backbone(cls, value: str | None, info: ValidationInfo) -> str | None:
        names = [backbone.name for backbone in info.data.get("backbones", ())]
        if value is not None and names and value not in names:
            raise ValueError(unknown("backbone", value, names))
        return value

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
