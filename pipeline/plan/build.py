"""From a pipeline config to the stages it asks for; every fault is found before anything starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline.config.kinds import Kind, load_config
from pipeline.config.schema import BackboneConfig, PipelineConfig, ProbeEntry, TaskConfig
from pipeline.config.yaml_files import apply_overrides, faults_of, load_yaml, validated
from pipeline.plan.compatibility import dataset_names, demands_of, disagreements, stem_fault
from pipeline.plan.data_identity import (
    SPLITS,
    by_use,
    checkpoint_digest,
    image_identity,
    set_content,
)
from pipeline.plan.data_sets import unknown_set
from pipeline.plan.overrides import blamed, mentioned
from pipeline.plan.place import place_faults, run_folders
from pipeline.plan.plan import Plan, share_folders
from pipeline.plan.recorded import MISSING, as_recorded
from pipeline.stages.stage import (
    CHECKPOINT,
    DATA,
    RANDOM_ARCH,
    TABLES,
    WORLD_SIZE,
    Stage,
    identity_of,
)
from transfer.checkpoints.other_files import tables_sha256
from transfer.config.convert import ConvertConfig
from transfer.config.data import DetectionData, known_datasets
from transfer.config.finetune import FinetuneConfig, optimizer_fault, signed_keys
from transfer.config.recipe import config_faults

if TYPE_CHECKING:  # each costs a start some hundredths of a second, and few plans need them all
    from pretrain.config.data import DataConfig
    from pretrain.config.pretrain import PretrainConfig
    from pretrain.config.probe import ProbeConfig

Config = TypeVar("Config", bound=BaseModel)
Value = TypeVar("Value")
Identity = dict[str, Any]
Probe: TypeAlias = "tuple[ProbeConfig, Identity]"
Task = tuple[FinetuneConfig, Identity]


def load_plan(
    config_file: Path, overrides: list[str], *, on_paper: bool = False, recorded: bool = False
) -> Plan:
    """Read, check and resolve a pipeline config and all configs it names.

    Args:
        config_file: the pipeline config (YAML); configs that it names lie relative to it.
        overrides: `key=value` changes, such as `seeds=[0,1]` or `backbones.0.name=mine`.
        on_paper: take data sets and checkpoints for given that need not be there: such a plan can
            be counted and scheduled, and its signatures mean nothing.
        recorded: take what cannot be read for an identity (data, a checkpoint, detectron2's
            defaults) as the run folders have it: enough to show results, not to make any.

    Returns:
        The stages, inputs before what needs them, each with its signature and run folder.

    Raises:
        ValueError: one line for every fault in any of the files, data sets and checkpoints.

    Example:
        >>> import json, tempfile
        >>> task = {"DATASETS": {"TRAIN": ["voc_2007_trainval"], "TEST": ["voc_2007_test"]}}
        >>> plan = {"name": "tiny", "backbones": [{"name": "random", "random": True}],
        ...         "tasks": [{"name": "voc", "config": "task.yaml"}], "seeds": [0]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, content in (("task", task), ("plan", plan)):  # JSON is YAML
        ...         _ = Path(folder, f"{name}.yaml").write_text(json.dumps(content))
        ...     loaded = load_plan(Path(folder, "plan.yaml"), ["seeds=[0,1]"], on_paper=True)
        >>> [stage.name for stage in loaded.stages]
        ['finetune/random--voc--seed0', 'finetune/random--voc--seed1']
    """
    content = apply_overrides(load_config(config_file, "pipeline config"), overrides)
    try:
        config = PipelineConfig.model_validate(content)
    except ValidationError as error:
        lines = faults_of(error, str(config_file), PipelineConfig) + _faults_in_named_files(
            content, config_file, on_paper
        )
        raise ValueError("\n".join(lines)) from None
    scope = _Scope(config, config_file, on_paper, recorded)
    _check_references(scope)
    scope.faults.extend([] if on_paper else place_faults(config))
    scope.faults.extend(
        f"{config_file}: output_dir: {part} is no folder, and results go below it"
        for part in (config.root, *config.root.parents)
        if part.exists() and not part.is_dir()
    )
    if not on_paper and not recorded:
        scope.faults.extend(f"{config_file}: {fault}" for fault in config.tracking.faults())
    stages = _build_stages(scope)
    if scope.faults:
        raise ValueError("\n".join(dict.fromkeys(scope.faults)))
    notes: tuple[str, ...] = ()
    if scope.missing:
        stages = as_recorded(stages, config.root)
        more = f" (and {len(scope.missing) - 1} more)" if len(scope.missing) > 1 else ""
        if run_folders(config.root):
            notes = (f"{scope.missing[0]}{more}; taken as the folders in {config.root} have it",)
    stages = share_folders(stages, config.root)
    return Plan(config, config_file, tuple(overrides), tuple(stages), notes)


def _check_references(scope: _Scope) -> None:
    """Keep the faults of a user's published tables; the built-in ones alone need no reading."""
    config = scope.config
    if config.references or any(task.reference is not None for task in config.tasks):
        from pipeline.config.references import references_of  # noqa: PLC0415

        scope.attempt(lambda: references_of(config, scope.config_file))


def _faults_in_named_files(content: dict[str, Any], config_file: Path, on_paper: bool) -> list[str]:
    """Return faults of the files a broken config names, so that one try shows them all."""
    models: dict[str, type[BaseModel]]
    models = {"backbones": BackboneConfig, "tasks": TaskConfig, "probes": ProbeEntry}
    sound: dict[str, Any] = {}
    for key, model in models.items():
        entries = content.get(key)
        sound[key] = []
        for entry in entries if isinstance(entries, list) else []:
            with contextlib.suppress(ValidationError):
                sound[key].append(model.model_validate(entry))
    declared = content.get("datasets")
    declared = declared if isinstance(declared, dict) else {}
    sound["datasets"] = {}
    for name, entry in declared.items():
        with contextlib.suppress(ValidationError):
            adapter: TypeAdapter[DetectionData] = TypeAdapter(DetectionData)
            sound["datasets"][name] = adapter.validate_python(entry)
    config = PipelineConfig.model_construct(name="unchecked", seeds=(0,), num_pictures=1, **sound)
    unread = frozenset(declared) - sound["datasets"].keys()
    scope = _Scope(config, config_file, on_paper, unread_datasets=unread)
    _build_stages(scope)
    return list(dict.fromkeys(scope.faults))


@dataclass(frozen=True)
class _Scope:
    """The config that stages are built from, its file, and what is known so far.

    `unread_datasets` are those whose own section is broken. `identities` of data are taken once for
    all stages; with `recorded` what cannot be read is `missing`.
    """

    config: PipelineConfig
    config_file: Path
    on_paper: bool = False
    recorded: bool = False
    unread_datasets: frozenset[str] = frozenset()
    faults: list[str] = field(default_factory=list)
    identities: dict[Hashable, Identity | None] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Return the folder that configs are named relative to."""
        return self.config_file.parent

    def attempt(self, action: Callable[[], Value]) -> Value | None:
        """Return the action's value, or keep its ValueError as a fault and return None."""
        try:
            return action()
        except ValueError as error:
            self.faults.extend(str(error).splitlines())
            return None

    def read_or_missing(self, take: Callable[[], Value]) -> Value | dict[str, Any] | None:
        """Return what the action reads; what cannot be is a fault, or marked with `recorded`."""
        if not self.recorded:
            return self.attempt(take)
        try:
            return take()
        except (ValueError, OSError) as error:
            self.missing.append(str(error).splitlines()[0])
            return {MISSING: True}

    def data_identity(self, key: Hashable, take: Callable[[], Identity]) -> Identity | None:
        """Return the identity of data that have to be there; of a plan on paper it is the key."""
        if key not in self.identities:
            on_paper = {"on paper": str(key)}
            self.identities[key] = on_paper if self.on_paper else self.read_or_missing(take)
        return self.identities[key]

    def images(self, data: DataConfig, kind: str) -> Identity | None:
        """Return the identity of the splits that a kind of stage reads of a set of images."""
        splits = SPLITS[kind]
        return self.data_identity((data, splits), lambda: image_identity(data, splits))

    def blaming(
        self,
        path: Path,
        what: str,
        overrides: tuple[str, ...],
        action: Callable[[_Scope, tuple[str, ...]], Value],
    ) -> Value:
        """Return what the action makes of a config file; faults are kept, each by who has it."""

        def faults_with(some: tuple[str, ...]) -> list[str]:
            scope = replace(self, faults=[], missing=[])
            action(scope, some)
            return scope.faults

        inner = replace(self, faults=[])
        value = action(inner, overrides)
        place = f"{self.config_file}: {what}"
        self.faults.extend(blamed(inner.faults, str(path), place, overrides, faults_with))
        return value

    def read(
        self, path: Path, kind: Kind, what: str, overrides: tuple[str, ...], model: type[Config]
    ) -> Config | None:
        """Return the config in a file, or None with its faults kept."""
        path = self.folder / path

        def load(scope: _Scope, some: tuple[str, ...]) -> Config | None:
            return scope.attempt(lambda: validated(model, load_config(path, kind, some), str(path)))

        return self.blaming(path, what, overrides, load)


def _build_stages(scope: _Scope) -> list[Stage]:
    config = scope.config
    tasks = [(task, _read_task(scope, task)) for task in config.tasks]
    probes = [(probe, _read_probe(scope, probe)) for probe in config.probes]
    stages: list[Stage] = []
    for backbone in config.backbones:
        before: list[Stage] = []
        if backbone.pretrain is not None:
            from pretrain.config.pretrain import PretrainConfig  # noqa: PLC0415

            path, what = backbone.pretrain, f"backbone {backbone.name}"
            kind: Kind = "pretraining config"
            recipe = scope.read(path, kind, what, backbone.overrides, PretrainConfig)
            if recipe is not None:
                before.append(_pretrain_stage(scope, backbone, recipe, tasks))
                if tasks:
                    before.append(_convert_stage(scope, backbone, before[0]))
        elif not backbone.random:
            before.append(_convert_stage(scope, backbone, None))
        stages += before
        if not before and not backbone.random:
            continue
        source = {"backbone": before[0]} if before else {}
        stages += [
            _probe_stage(scope, backbone, probe, resolved, source)
            for probe, resolved in probes
            if resolved is not None
        ]
        weights = {"weights": before[-1]} if before else {}
        for task, resolved in tasks:
            if resolved is not None:
                stages += _finetune_stages(scope, backbone, task, resolved, weights)
    return stages


def _pretrain_stage(
    scope: _Scope,
    backbone: BackboneConfig,
    recipe: PretrainConfig,
    tasks: list[tuple[TaskConfig, Task | None]],
) -> Stage:
    """Return the stage; what of the tasks does not fit the backbone becomes a fault."""
    assert backbone.pretrain is not None
    path = scope.folder / backbone.pretrain
    num_ranks = scope.config.resources.of("pretrain").num_processes("pretrain")
    data = scope.images(recipe.data, "pretrain")
    place = f"{scope.config_file}: backbone {backbone.name}"
    faults = [f" on {num_ranks} GPUs (resources.pretrain): {fault}"
              for fault in recipe.faults_on(num_ranks)]  # fmt: skip
    faults += [f": {fault}"] if tasks and (fault := stem_fault(recipe)) else []
    lines = (f"backbone {backbone.name}{fault}" for fault in faults)
    scope.faults.extend(mentioned(line, str(path), place, backbone.overrides) for line in lines)
    for task, resolved in tasks:
        where, place = str(scope.folder / task.config), f"{scope.config_file}: task {task.name}"
        for fault in disagreements(demands_of(recipe), resolved[0].detectron2) if resolved else []:
            line = f"does not fit backbone {backbone.name}: {fault}"
            scope.faults.append(mentioned(line, where, place, task.overrides))
    settings = _absolute(recipe.model_dump(mode="json"), "data", "root")
    return Stage(
        kind="pretrain",
        slug=backbone.name,
        identity=identity_of(recipe) | {WORLD_SIZE: num_ranks, DATA: data},
        settings=_absolute(settings, "probe", "data", "root"),
        root=scope.config.root,
        backbone=backbone.name,
        source=str(path),
    )


def _convert_stage(scope: _Scope, backbone: BackboneConfig, pretrain: Stage | None) -> Stage:
    config = ConvertConfig(format=backbone.format, encoder=backbone.encoder, input=backbone.input)
    identity, settings = identity_of(config), config.model_dump(mode="json")
    if backbone.checkpoint is not None:
        source = backbone.checkpoint
        settings["checkpoint"] = str(source.absolute())
        if scope.on_paper and not source.exists():
            identity[CHECKPOINT] = f"on paper {source}"
        else:
            identity[CHECKPOINT] = scope.read_or_missing(lambda: _digest(source, backbone.name))
        is_unread = identity[CHECKPOINT] == {MISSING: True}
        identity[TABLES] = {MISSING: True} if is_unread else tables_sha256()
    return Stage(
        kind="convert",
        slug=backbone.name,
        identity=identity,
        settings=settings,
        root=scope.config.root,
        inputs={"checkpoint": pretrain} if pretrain else {},
        backbone=backbone.name,
    )


def _digest(checkpoint: Path, backbone: str) -> Any:
    try:
        return checkpoint_digest(checkpoint)
    except ValueError as error:
        raise ValueError(f"{error} (backbone {backbone})") from None


def _read_probe(scope: _Scope, probe: ProbeEntry) -> Probe | None:
    """Return the config and what of it can change a result."""
    from pretrain.config.probe import ProbeConfig  # noqa: PLC0415

    what = f"probe {probe.name}"
    config = scope.read(probe.config, "probe config", what, probe.overrides, ProbeConfig)
    if config is None:
        return None
    if config.random_arch is None and any(entry.random for entry in scope.config.backbones):
        scope.faults.append(
            f"{scope.folder / probe.config}: random_arch: give the architecture to probe "
            "where a backbone is random"
        )
    return config, identity_of(config) | {DATA: scope.images(config.data, "probe")}


def _probe_stage(
    scope: _Scope,
    backbone: BackboneConfig,
    probe: ProbeEntry,
    resolved: Probe,
    inputs: dict[str, Stage],
) -> Stage:
    config, identity = resolved
    return Stage(
        kind="probe",
        slug=f"{backbone.name}--{probe.name}",
        identity=identity | ({RANDOM_ARCH: config.random_arch} if backbone.random else {}),
        settings=_absolute(config.model_dump(mode="json"), "data", "root"),
        root=scope.config.root,
        inputs=inputs,
        backbone=backbone.name,
        probe=probe.name,
        source=str(scope.folder / probe.config),
    )


def _read_task(scope: _Scope, task: TaskConfig) -> Task | None:
    """Return the config and what of it, but for the seed, can change a result."""
    path = scope.folder / task.config

    def read(scope: _Scope, overrides: tuple[str, ...]) -> Task | None:
        return _read_changed_task(scope, task, overrides)

    return scope.blaming(path, f"task {task.name}", task.overrides, read)


def _read_changed_task(scope: _Scope, task: TaskConfig, overrides: tuple[str, ...]) -> Task | None:
    path = scope.folder / task.config
    content = scope.attempt(lambda: load_config(path, "detectron2 config", overrides))
    if content is None:
        return None
    fault = optimizer_fault(load_yaml(path), content, task.optimizer, overrides)
    scope.faults.extend([f"{path}: task {task.name}: {fault}"] if fault else [])
    known = known_datasets() | dict(scope.config.datasets)
    datasets: dict[str, DetectionData] = {}
    identities: dict[str, Identity | None] = {}
    names, faults = dataset_names(content, path)
    scope.faults.extend(faults)
    for name in (name for listed in names.values() for name in listed):
        if name in scope.unread_datasets:
            continue
        if name not in known:
            scope.faults.append(unknown_set(name, path, known))
            continue
        datasets[name] = known[name]
        take = partial(set_content, name, known[name])
        identities[name] = scope.data_identity(name, take)
    if names:
        content["DATASETS"] |= names  # lists, though text was given
    settings = {"detectron2": content, "datasets": datasets} | {
        "optimizer": task.optimizer,
        "num_gpus": task.num_gpus,
        "num_nodes": task.num_nodes,
        "num_pictures": scope.config.num_pictures,
    }
    config = scope.attempt(lambda: validated(FinetuneConfig, settings, str(path)))
    identity = config and scope.attempt(lambda: _task_identity(config, str(path), scope))
    data = by_use(content, identities)
    return (config, identity | {DATA: data}) if config and identity else None


def _task_identity(config: FinetuneConfig, where: str, scope: _Scope) -> Identity:
    """Return the identity of a task: its detectron2 config resolved, its sets left to `by_use`.

    Of results that are only shown, a config that is refused enters as it is written.
    """
    identity = identity_of(config)
    del identity["datasets"]
    faults: list[str] = []
    try:
        faults = [] if scope.recorded else config_faults(config)
        identity["detectron2"] = signed_keys(config.detectron2, config.optimizer)
    except ValueError:
        pass
    except FileNotFoundError:
        if scope.recorded:
            scope.missing.append(f"{where}: detectron2 is not installed")
            identity["detectron2"] = {MISSING: True}
        elif not scope.on_paper:
            raise ValueError(
                f"{where}: detectron2 is not installed, and its defaults are part of what a "
                "fine-tuning is known by; run make env, or tools/install_detectron2.py"
            ) from None
    if faults:
        raise ValueError("\n".join(f"{where}: {fault}" for fault in faults))
    return identity


def _finetune_stages(
    scope: _Scope,
    backbone: BackboneConfig,
    task: TaskConfig,
    resolved: Task,
    inputs: dict[str, Stage],
) -> list[Stage]:
    config, identity = resolved
    settings = config.model_dump(mode="json")
    for data in settings["datasets"].values():
        for key in ("annotations", "images", "root"):
            data.update(_absolute(data, key))
    stages = []
    for seed in task.seeds if task.seeds is not None else scope.config.seeds:
        stages.append(
            Stage(
                kind="finetune",
                slug=f"{backbone.name}--{task.name}--seed{seed}",
                identity=identity | {"seed": seed},
                settings=settings | {"seed": seed},
                root=scope.config.root,
                inputs=inputs,
                backbone=backbone.name,
                task=task.name,
                seed=seed,
                source=str(scope.folder / task.config),
            )
        )
    return stages


def _absolute(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the settings with the path at `keys`, if there is one, taken from here."""
    key, *rest = keys
    value = settings.get(key)
    if value is None:
        return settings
    return settings | {key: _absolute(value, *rest) if rest else str(Path(value).absolute())}
