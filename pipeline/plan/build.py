"""From a pipeline config to the stages it asks for; every fault is found before anything starts."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline.config.schema import BackboneConfig, PipelineConfig, ProbeEntry, TaskConfig
from pipeline.config.yaml_files import apply_overrides, faults_of, load_changed, load_yaml
from pipeline.plan.compatibility import disagreements, stem_fault
from pipeline.plan.data_identity import detection_identity, image_identity
from pipeline.plan.data_sets import dataset_names, unknown_set
from pipeline.stages.files import sha256_of
from pipeline.stages.signature import identity_of
from pipeline.stages.stage import Stage
from pretrain.config.data import DataConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig
from pretrain.data.splits import Split
from transfer.config.convert import ConvertConfig
from transfer.config.data import DetectionData, known_datasets
from transfer.config.finetune import FinetuneConfig

Config = TypeVar("Config", bound=BaseModel)
Value = TypeVar("Value")
ImageSplits = tuple[DataConfig, tuple[Split, ...]]


@dataclass(frozen=True)
class Plan:
    """All stages, inputs before what needs them, and the config they come from."""

    config: PipelineConfig
    config_file: Path
    overrides: tuple[str, ...]
    stages: tuple[Stage, ...]

    @property
    def root(self) -> Path:
        """Return the folder of this pipeline's runs."""
        return self.config.output_dir / self.config.name


def load_plan(config_file: Path, overrides: list[str], *, on_paper: bool = False) -> Plan:
    """Read, check and resolve a pipeline config and all configs it names.

    `on_paper` takes data sets and checkpoints for given that need not be there: such a plan can be
    counted and scheduled, and its signatures mean nothing.

    Raises:
        ValueError: one line for every fault in any of the files, data sets and checkpoints.
    """
    content = apply_overrides(load_yaml(config_file), overrides)
    try:
        config = PipelineConfig.model_validate(content)
    except ValidationError as error:
        lines = faults_of(error, str(config_file), PipelineConfig) + _faults_in_named_files(
            content, config_file
        )
        raise ValueError("\n".join(lines)) from None
    builder = _Builder(config, config_file.parent, on_paper=on_paper)
    stages = builder.build()
    if builder.faults:
        raise ValueError("\n".join(dict.fromkeys(builder.faults)))
    return Plan(config, config_file, tuple(overrides), tuple(stages))


def _faults_in_named_files(content: dict[str, Any], config_file: Path) -> list[str]:
    """Return faults of the files a broken config names, so that one try shows them all."""
    sections: dict[str, type[BaseModel]] = {
        "backbones": BackboneConfig,
        "tasks": TaskConfig,
        "probes": ProbeEntry,
    }
    parts: dict[str, list[Any]] = {key: [] for key in sections}
    for key, model in sections.items():
        entries = content.get(key)
        for entry in entries if isinstance(entries, list) else []:
            try:
                parts[key].append(model.model_validate(entry))
            except ValidationError:
                continue
    datasets, unread = _declared_sets(content.get("datasets"))
    config = PipelineConfig.model_construct(
        name="unchecked",
        backbones=tuple(parts["backbones"]),
        tasks=tuple(parts["tasks"]),
        probes=tuple(parts["probes"]),
        seeds=(0,),
        datasets=datasets,
        num_pictures=1,
        output_dir=Path("runs"),
    )
    builder = _Builder(config, config_file.parent)
    builder.unread_datasets = unread
    builder.build()
    return list(dict.fromkeys(builder.faults))


def _declared_sets(section: Any) -> tuple[dict[str, DetectionData], frozenset[str]]:
    """Return the sets that a broken config declares soundly, and the names of the others."""
    declared: dict[str, DetectionData] = {}
    names = [str(name) for name in section] if isinstance(section, dict) else []
    for name in names:
        with contextlib.suppress(ValidationError):
            declared[name] = TypeAdapter[DetectionData](DetectionData).validate_python(
                section[name]
            )
    return declared, frozenset(names) - declared.keys()


class _Builder:
    """Collects stages and faults while walking the config."""

    def __init__(self, config: PipelineConfig, config_dir: Path, *, on_paper: bool = False) -> None:
        self.config = config
        self.on_paper = on_paper
        self.config_dir = config_dir
        self.root = config.output_dir / config.name
        self.faults: list[str] = []
        self.known_datasets = known_datasets() | dict(config.datasets)
        self.unread_datasets: frozenset[str] = frozenset()
        self.pretrain_configs: dict[str, PretrainConfig] = {}
        self.data_identities: dict[str, dict[str, Any] | None] = {}
        self.image_identities: dict[
            tuple[DataConfig, tuple[Split, ...]], dict[str, Any] | None
        ] = {}

    def build(self) -> list[Stage]:
        tasks = [(task, self.finetune_config(task)) for task in self.config.tasks]
        probes = [(probe, self.probe_config(probe)) for probe in self.config.probes]
        stages: list[Stage] = []
        for backbone in self.config.backbones:
            before = self.stages_before_finetuning(backbone)
            self.compare_with_tasks(backbone, tasks)
            stages += before
            if before or backbone.random:
                source = {"backbone": before[0]} if before else {}
                stages += [
                    self.probe_stage(backbone, probe, config, source)
                    for probe, config in probes
                    if config is not None
                ]
            inputs = {"weights": before[-1]} if before else {}
            for task, config in tasks:
                if config is not None and (before or backbone.random):
                    stages += self.finetune_stages(backbone, task, config, inputs)
        return stages

    def compare_with_tasks(
        self,
        backbone: BackboneConfig,
        tasks: list[tuple[TaskConfig, tuple[FinetuneConfig, dict[str, Any]] | None]],
    ) -> None:
        config = self.pretrain_configs.get(backbone.name)
        if config is not None and tasks and (fault := stem_fault(config)):
            assert backbone.pretrain is not None
            recipe = self.config_dir / backbone.pretrain
            self.faults.append(f"{recipe}: backbone {backbone.name}: {fault}")
        for task, resolved in tasks:
            if config is not None and resolved is not None:
                faults = disagreements(config, resolved[0].detectron2)
                where = f"{self.config_dir / task.config}: does not fit backbone {backbone.name}"
                self.faults += [f"{where}: {fault}" for fault in faults]

    def stages_before_finetuning(self, backbone: BackboneConfig) -> list[Stage]:
        if backbone.random:
            return []
        if backbone.pretrain is not None:
            pretrain = self.pretrain_stage(backbone)
            if pretrain is None or not self.config.tasks:
                return [pretrain] if pretrain else []
            return [pretrain, self.convert_stage(backbone, pretrain)]
        convert = self.convert_stage(backbone, None)
        return [convert] if convert else []

    def pretrain_stage(self, backbone: BackboneConfig) -> Stage | None:
        assert backbone.pretrain is not None
        config = self.read(backbone.pretrain, backbone.overrides, PretrainConfig)
        if config is None:
            return None
        self.pretrain_configs[backbone.name] = config
        num_ranks = max(1, self.config.resources.of("pretrain").num_gpus)
        self.faults += [
            f"{self.config_dir / backbone.pretrain}: backbone {backbone.name} on {num_ranks} GPUs "
            f"(resources.pretrain): {fault}"
            for fault in config.faults_on(num_ranks)
        ]
        data = self.image_identity(config.data, "pretrain")
        settings = _absolute(config.model_dump(mode="json"), "data", "root")
        return Stage(
            kind="pretrain",
            slug=backbone.name,
            identity=identity_of(config) | {"data_content": data},
            settings=_absolute(settings, "probe", "data", "root"),
            root=self.root,
            backbone=backbone.name,
            source=str(self.config_dir / backbone.pretrain),
        )

    def image_identity(self, data: DataConfig, *splits: Split) -> dict[str, Any] | None:
        """Return the identity of splits of a set of images, taken once for all stages."""
        key = (data, splits)
        if key not in self.image_identities:
            self.image_identities[key] = self.identity(lambda: image_identity(data, splits))
        return self.image_identities[key]

    def convert_stage(self, backbone: BackboneConfig, pretrain: Stage | None) -> Stage:
        config = ConvertConfig(format=backbone.format, encoder=backbone.encoder)
        identity, settings = identity_of(config), config.model_dump(mode="json")
        if backbone.checkpoint is not None:
            source = backbone.checkpoint
            settings["checkpoint"] = str(source.absolute())
            if source.is_file():
                identity["checkpoint_sha256"] = sha256_of(source)
            elif not self.on_paper:
                self.faults.append(f"{source}: no such checkpoint (backbone {backbone.name})")
        return Stage(
            kind="convert",
            slug=backbone.name,
            identity=identity,
            settings=settings,
            root=self.root,
            inputs={"checkpoint": pretrain} if pretrain else {},
            backbone=backbone.name,
        )

    def probe_config(self, probe: ProbeEntry) -> tuple[ProbeConfig, dict[str, Any]] | None:
        """Return the config and what of it can change a result."""
        config = self.read(probe.config, probe.overrides, ProbeConfig)
        if config is None:
            return None
        if config.random_arch is None and any(entry.random for entry in self.config.backbones):
            self.faults.append(
                f"{self.config_dir / probe.config}: random_arch: give the architecture to probe "
                "where a backbone is random"
            )
        data = self.image_identity(config.data, "train", "test")
        return config, identity_of(config) | {"data_content": data}

    def probe_stage(
        self,
        backbone: BackboneConfig,
        probe: ProbeEntry,
        config: tuple[ProbeConfig, dict[str, Any]],
        inputs: dict[str, Stage],
    ) -> Stage:
        random = {"random_arch": config[0].random_arch} if backbone.random else {}
        return Stage(
            kind="probe",
            slug=f"{backbone.name}--{probe.name}",
            identity=config[1] | random,
            settings=_absolute(config[0].model_dump(mode="json"), "data", "root"),
            root=self.root,
            inputs=inputs,
            backbone=backbone.name,
            probe=probe.name,
            source=str(self.config_dir / probe.config),
        )

    def finetune_config(self, task: TaskConfig) -> tuple[FinetuneConfig, dict[str, Any]] | None:
        path = self.config_dir / task.config
        content = self.attempt(lambda: load_changed(path, task.overrides))
        if content is None:
            return None
        datasets, identities = {}, {}
        names, faults = dataset_names(content, path)
        self.faults += faults
        for name in (name for held in names.values() for name in held):
            if name in self.unread_datasets:
                continue
            if name not in self.known_datasets:
                self.faults.append(unknown_set(name, path, self.known_datasets))
                continue
            datasets[name] = self.known_datasets[name]
            if name not in self.data_identities:
                data = datasets[name]
                self.data_identities[name] = self.identity(
                    lambda name=name, data=data: detection_identity(name, data)  # type: ignore[misc]
                )
            identities[name] = self.data_identities[name]
        try:
            config = FinetuneConfig(
                detectron2=content,
                datasets=datasets,
                optimizer=task.optimizer,
                num_gpus=task.num_gpus,
                num_nodes=task.num_nodes,
                num_pictures=self.config.num_pictures,
            )
        except ValidationError as error:
            self.faults += faults_of(error, str(path), FinetuneConfig)
            return None
        identity = self.attempt(lambda: _task_identity(config, str(path)))
        return None if identity is None else (config, identity | {"data_content": identities})

    def finetune_stages(
        self,
        backbone: BackboneConfig,
        task: TaskConfig,
        config: tuple[FinetuneConfig, dict[str, Any]],
        inputs: dict[str, Stage],
    ) -> list[Stage]:
        stages = []
        for seed in task.seeds if task.seeds is not None else self.config.seeds:
            seeded = config[0].model_copy(update={"seed": seed})
            settings = seeded.model_dump(mode="json")
            for data in settings["datasets"].values():
                for key in ("annotations", "images", "root"):
                    if key in data:
                        data[key] = str(Path(data[key]).absolute())
            stages.append(
                Stage(
                    kind="finetune",
                    slug=f"{backbone.name}--{task.name}--seed{seed}",
                    identity=config[1] | {"seed": seed},
                    settings=settings,
                    root=self.root,
                    inputs=inputs,
                    backbone=backbone.name,
                    task=task.name,
                    seed=seed,
                    source=str(self.config_dir / task.config),
                )
            )
        return stages

    def read(self, path: Path, overrides: tuple[str, ...], model: type[Config]) -> Config | None:
        path = self.config_dir / path
        content = self.attempt(lambda: load_changed(path, overrides))
        if content is None:
            return None
        try:
            return model.model_validate(content)
        except ValidationError as error:
            self.faults += faults_of(error, str(path), model)
            return None

    def identity(self, of_data: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Return the identity of data that has to be there, unless the plan is on paper."""
        return None if self.on_paper else self.attempt(of_data)

    def attempt(self, action: Callable[[], Value]) -> Value | None:
        """Return the action's value, or keep its ValueError as a fault and return None."""
        try:
            return action()
        except ValueError as error:
            self.faults += str(error).splitlines()
            return None


def _task_identity(config: FinetuneConfig, where: str) -> dict[str, Any]:
    """Return the identity of a task without the detectron2 keys that cannot change a result."""
    try:
        identity = identity_of(config)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None
    content = copy.deepcopy(identity["detectron2"])
    for section, key in (("SOLVER", "CHECKPOINT_PERIOD"), ("MODEL", "DEVICE")):
        if isinstance(content.get(section), dict):
            content[section].pop(key, None)
    for key in ("VIS_PERIOD", "OUTPUT_DIR"):
        content.pop(key, None)
    return identity | {"detectron2": content}


def _absolute(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the settings with the path at `keys`, if there is one, taken from here."""
    key, *rest = keys
    value = settings.get(key)
    if value is None:
        return settings
    return settings | {key: _absolute(value, *rest) if rest else str(Path(value).absolute())}
