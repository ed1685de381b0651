"""Data and checkpoint of a stage by content: all that it reads besides results of other stages.

The plan takes it into the identity, which `config.json` keeps; the worker takes it again when the
stage starts and before its manifest, and compares.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.plan.compatibility import dataset_names
from pipeline.plan.data_identity import content_read, detection_identity
from pipeline.stages.signature import CHECKPOINT, DATA, WORLD_SIZE, differences, identity_of
from pipeline.stages.staleness import by_name
from transfer.config.data import CocoData, VocData
from transfer.config.finetune import FinetuneConfig

Identity = dict[str, Any]


def set_content(name: str, data: CocoData | VocData) -> Identity:
    """Return the identity of a detection set and of how it is read, under whatever name.

    Raises:
        ValueError: a file or folder of the layout is missing.
    """
    return {"settings": identity_of(data), **detection_identity(name, data)}


def by_use(task: dict[str, Any], sets: Mapping[str, Identity | None]) -> dict[str, Any]:
    """Return the sets of a detectron2 config in the order of its DATASETS.TRAIN and TEST."""
    names, _ = dataset_names(task, Path())
    return {use: [sets.get(name) for name in listed] for use, listed in names.items()}


def contents_of(kind: str, settings: dict[str, Any]) -> Identity:
    """Return the part of a stage's identity that is read from its data and its checkpoint.

    Raises:
        ValueError: data or the checkpoint are missing.
    """
    if kind == "finetune":
        config = FinetuneConfig.model_validate(settings)
        sets = {name: set_content(name, data) for name, data in config.datasets.items()}
        return {DATA: by_use(config.detectron2, sets)}
    read = content_read(kind, settings)
    return read if CHECKPOINT in read or not read else {DATA: read}


def check_contents(kind: str, planned: Identity, settings: dict[str, Any]) -> None:
    """Compare the identity that a stage was planned with with what it really reads.

    Raises:
        ValueError: they differ, with both values.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if planned.get(WORLD_SIZE, processes) != processes:
        raise ValueError(
            f"planned for {planned[WORLD_SIZE]} processes (resources.{kind}), started by "
            f"{processes}; results depend on their number: plan with it, or start as many"
        )
    if not planned.keys() & {DATA, CHECKPOINT}:
        return
    read = contents_of(kind, settings)
    sides: list[Identity] = [{key: side.get(key) for key in read} for side in (planned, read)]
    if DATA in read:
        sides = [dict(by_name(settings, side[DATA])) for side in sides]
    lines = differences(sides[0], sides[1], names=("planned", "read"))
    if lines:
        where = settings.get("checkpoint") or "data"
        raise ValueError(
            f"{where} changed between the plan and this stage ({'; '.join(lines)}); run again, to "
            "plan with what is there now, or put back what was planned with"
        )
