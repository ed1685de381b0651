"""The detection sets that a pipeline config names, and what its tasks use them for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.kinds import load_config
from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_files import validated
from pipeline.plan.compatibility import dataset_names, task_value
from pipeline.stages.files import unknown
from transfer.config.data import (
    KNOWN_DATASETS,
    MAX_DETECTIONS,
    CocoData,
    VocData,
    datasets_root,
    known_datasets,
)
from transfer.config.finetune import FinetuneConfig

# Halves of trainval, which the field trains on; two boxes of VOC 2012 (2011_003353, 2011_006777)
# lie between pixels, which only an evaluation minds.
VOC_HALVES = ("voc_2007_val", "voc_2012_val")


class NamedSet(NamedTuple):
    """A set, and what the tasks want of it, in the order of `transfer.datasets.findings.Needs`."""

    data: CocoData | VocData
    evaluated: bool
    masks: bool
    trained: bool = False
    polygons: bool = False
    drops_empty: bool = True
    num_kept: int = MAX_DETECTIONS
    train_sets: tuple[tuple[str, ...], ...] = ()


def sets_of_config(config_file: Path) -> dict[str, NamedSet]:
    """Return the sets that the config's tasks and its section `datasets` name.

    Raises:
        ValueError: one line for every fault in the config, its tasks and their names.
    """
    config = validated(
        PipelineConfig, load_config(config_file, "pipeline config"), str(config_file)
    )
    known = known_datasets() | dict(config.datasets)
    uses: dict[str, set[str]] = {}
    train_sets: dict[str, list[tuple[str, ...]]] = {}
    num_kept: dict[str, int] = {}
    faults: list[str] = []
    for task in config.tasks:
        path = config_file.parent / task.config
        content = load_config(path, "detectron2 config", task.overrides)
        names, wrong = dataset_names(content, path)
        faults += wrong
        settings = _settings(content)
        for key, name in ((key, name) for key, listed in names.items() for name in listed):
            if name in known:
                use = uses.setdefault(name, set())
                use |= {key} | (settings if key == "TRAIN" else settings & {"masks"})
                if key == "TEST":
                    train_sets.setdefault(name, []).append(tuple(names.get("TRAIN", ())))
                    kept = task_value(content, "TEST.DETECTIONS_PER_IMAGE")
                    if isinstance(kept, int):
                        num_kept[name] = min(kept, num_kept.get(name, kept))
            else:
                faults.append(unknown_set(name, path, known))
    if faults:
        raise ValueError("\n".join(dict.fromkeys(faults)))
    return {name: unused(name, data) for name, data in config.datasets.items()} | {
        name: NamedSet(
            known[name],
            evaluated="TEST" in use,
            masks="masks" in use,
            trained="TRAIN" in use,
            polygons="polygons" in use,
            drops_empty="drops_empty" in use,
            num_kept=num_kept.get(name, MAX_DETECTIONS),
            train_sets=tuple(dict.fromkeys(train_sets.get(name, ()))),
        )
        for name, use in uses.items()
    }


def recipe_faults(config_file: Path, *, classes: bool) -> list[str]:
    """Return what `plan` refuses of each task's recipe, of a config whose sets are known.

    Classes are compared where `classes` says that the sets are sound.
    """
    stage = import_module("transfer.finetune")  # only now: detectron2 takes seconds to import
    config = validated(
        PipelineConfig, load_config(config_file, "pipeline config"), str(config_file)
    )
    known = known_datasets() | dict(config.datasets)
    faults = []
    for task in config.tasks:
        path = config_file.parent / task.config
        content = load_config(path, "detectron2 config", task.overrides)
        names, _ = dataset_names(content, path)
        content = {
            "detectron2": content,
            "datasets": {name: known[name] for listed in names.values() for name in listed},
            "optimizer": task.optimizer,
            "num_gpus": task.num_gpus,
            "num_nodes": task.num_nodes,
        }
        try:
            settings = validated(FinetuneConfig, content, str(path))
        except ValueError as error:
            faults += str(error).splitlines()
            continue
        wrong = stage.check_recipe(settings) or (stage.check_classes(settings) if classes else [])
        faults += [f"{path}: task {task.name}: {fault}" for fault in wrong]
    return faults


def _settings(content: dict[str, Any]) -> set[str]:
    """Return which settings of a task matter to its sets; what it does not say is detectron2's."""

    def value(section: str, key: str, default: Any) -> Any:
        values = content.get(section)
        return values.get(key, default) if isinstance(values, dict) else default

    masks = bool(value("MODEL", "MASK_ON", False))
    settings = {
        "masks": masks,
        "polygons": masks and value("INPUT", "MASK_FORMAT", "polygon") == "polygon",
        "drops_empty": bool(value("DATALOADER", "FILTER_EMPTY_ANNOTATIONS", True)),
    }
    return {name for name, is_on in settings.items() if is_on}


def chosen_sets(names: list[str], config_file: Path | None) -> dict[str, NamedSet]:
    """Return the sets of these names and of the config; without either all known ones there are.

    Raises:
        ValueError: the config is broken, a name is unknown, or no set is there.
    """
    known = {name: unused(name, data) for name, data in known_datasets().items()}
    of_config = sets_of_config(config_file) if config_file else {}
    if names:
        if wrong := [name for name in names if name not in known | of_config]:
            where = config_file or datasets_root()
            raise ValueError(
                "\n".join(unknown_set(name, where, known | of_config) for name in wrong)
            )
        return of_config | {name: (known | of_config)[name] for name in names}
    present = of_config or {
        name: each for name, each in known.items() if each.data.index_file.is_file()
    }
    if not present:
        raise ValueError(f"{datasets_root()}: no known set is there; set DETECTRON2_DATASETS")
    return present


def unused(name: str, data: CocoData | VocData) -> NamedSet:
    """Return a set that no task uses; one that is not named for training counts as evaluated."""
    evaluated = "train" not in name and name not in VOC_HALVES
    return NamedSet(data, evaluated=evaluated, masks=False)


def unknown_set(name: str, path: Path | str, known: dict[str, Any]) -> str:
    """Return the fault of a name that no set has; sets of one's own are listed first."""
    names = sorted(known, key=lambda name: (name in KNOWN_DATASETS, name))
    return (
        f"{path}: {unknown('data set', name, names)}; one of your own is an entry under "
        f"`datasets:` in the pipeline config, `{name}: {{format: coco, annotations: FILE.json, "
        "images: FOLDER}` or `{format: voc, root: FOLDER, split: NAME, class_names: [..]}` "
        f"(init --data {name}=coco:FILE.json:FOLDER)"
    )
