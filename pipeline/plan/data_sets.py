"""The detection sets that a pipeline config names, and what its tasks want of them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipeline.config.schema import PipelineConfig
from pipeline.config.suggestions import unknown
from pipeline.config.yaml_files import faults_of, load_changed, load_yaml
from transfer.config.data import KNOWN_DATASETS, CocoData, VocData, datasets_root, known_datasets

# Halves of trainval, which the field trains on; two boxes of VOC 2012 (2011_003353, 2011_006777)
# lie between pixels, which only an evaluation minds.
VOC_HALVES = ("voc_2007_val", "voc_2012_val")


class NamedSet(NamedTuple):
    """A set, whether AP is measured on it, and whether a task wants masks of it."""

    data: CocoData | VocData
    evaluated: bool
    masks: bool


def sets_of_config(config_file: Path) -> dict[str, NamedSet]:
    """Return the sets that the config's tasks and its section `datasets` name.

    Raises:
        ValueError: one line for every fault in the config, its tasks and their names.
    """
    try:
        config = PipelineConfig.model_validate(load_yaml(config_file))
    except ValidationError as error:
        raise ValueError("\n".join(faults_of(error, str(config_file), PipelineConfig))) from None
    known = known_datasets() | dict(config.datasets)
    found = {name: unused(name, data) for name, data in config.datasets.items()}
    used: set[str] = set()
    faults: list[str] = []
    for task in config.tasks:
        path = config_file.parent / task.config
        content = load_changed(path, task.overrides)
        names, wrong = dataset_names(content, path)
        faults += wrong
        model = content.get("MODEL")
        masks = isinstance(model, dict) and bool(model.get("MASK_ON"))
        for key, name in ((key, name) for key, held in names.items() for name in held):
            if name not in known:
                faults.append(unknown_set(name, path, known))
                continue
            before = found[name] if name in used else NamedSet(known[name], False, False)
            evaluated = before.evaluated or key == "TEST"
            found[name] = NamedSet(known[name], evaluated, before.masks or masks)
            used.add(name)
    if faults:
        raise ValueError("\n".join(dict.fromkeys(faults)))
    return found


def chosen_sets(names: list[str], config_file: Path | None) -> dict[str, NamedSet]:
    """Return the sets of these names; without names the config's, or all known ones that are there.

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
        return {name: (known | of_config)[name] for name in names}
    found = of_config or {name: held for name, held in known.items() if is_present(held.data)}
    if not found:
        raise ValueError(f"{datasets_root()}: no known set is there; set DETECTRON2_DATASETS")
    return found


def is_present(data: CocoData | VocData) -> bool:
    """Return whether the file that lists a set's images is there."""
    if isinstance(data, CocoData):
        return data.annotations.is_file()
    return (data.root / "ImageSets" / "Main" / f"{data.split}.txt").is_file()


def unused(name: str, data: CocoData | VocData) -> NamedSet:
    """Return a set that no task uses; one that is not named for training counts as evaluated."""
    evaluated = "train" not in name and name not in VOC_HALVES
    return NamedSet(data, evaluated=evaluated, masks=False)


def unknown_set(name: str, path: Path | str, known: dict[str, Any]) -> str:
    """Return the fault of a name that no set has; sets of one's own are listed first."""
    names = sorted(known, key=lambda name: (name in KNOWN_DATASETS, name))
    return f"{path}: {unknown('data set', name, names)}"


def dataset_names(content: dict[str, Any], path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names under DATASETS.TRAIN and DATASETS.TEST of a task, and what is wrong."""
    names: dict[str, list[str]] = {}
    faults: list[str] = []
    section = content.get("DATASETS")
    for key in ("TRAIN", "TEST"):
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(value, str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                value = None
        if not isinstance(value, list | tuple) or not value:
            faults.append(f"{path}: DATASETS.{key}: wanted a list of data set names")
            continue
        names[key] = [str(name) for name in value]
    return names, faults
