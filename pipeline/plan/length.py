"""Steps of a plan's stages as they will be run, whatever their configs count in."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.plan.compatibility import task_value
from pipeline.stages.stage import Stage


@dataclass(frozen=True)
class Length:
    """Iterations of a fine-tuning, images in each, and how detectron2 came to them."""

    iterations: int
    images: int
    processes: int
    max_iter: int
    reference: int

    @classmethod
    def of(cls, task: dict[str, Any], processes: int) -> Length:
        """Return that of a detectron2 config, scaled as detectron2 does from its reference."""
        keys = ("MAX_ITER", "IMS_PER_BATCH", "REFERENCE_WORLD_SIZE")
        max_iter, images, reference = (int(task_value(task, f"SOLVER.{key}")) for key in keys)
        scale = processes / reference if reference else 1.0
        iterations = round(max_iter / scale)
        return cls(iterations, round(images * scale), processes, max_iter, reference)


def length_of(stage: Stage) -> str:
    """Return how long a stage trains, such as `192,000 iterations`; nothing of others.

    Nothing either where results are shown of a config that is refused by now.

    Example:
        >>> from pathlib import Path
        >>> task = {"SOLVER": {"MAX_ITER": 4, "IMS_PER_BATCH": 16, "REFERENCE_WORLD_SIZE": 8}}
        >>> settings = {"detectron2": task, "num_gpus": 1, "num_nodes": 1}
        >>> length_of(Stage("finetune", "a--voc--seed0", {}, settings, Path()))
        '32 iterations'
    """
    if stage.kind == "finetune":
        with suppress(ValueError, TypeError):
            return f"{_of_task(stage).iterations:,} iterations"
        return ""
    if stage.kind == "pretrain":
        for key, unit in (("max_steps", "steps"), ("epochs", "epochs")):
            if count := stage.settings.get(key):
                return f"{count:,} {unit}"
    return ""


def length_lines(stages: Iterable[Stage]) -> list[str]:
    """Return a line for every recipe and task: how long it trains, and what comes before its AP."""
    lines = []
    for stage in stages:
        if stage.kind == "pretrain" and (length_text := length_of(stage)):
            images = stage.settings["batch_size"]
            lines.append(f"backbone {stage.backbone}: {length_text}, {images:,} images a step")
        elif stage.kind == "finetune":
            length, task = _of_task(stage), stage.settings["detectron2"]
            line = f"task {stage.task}: {length.iterations:,} iterations of {length.images} images"
            if length.reference not in (0, length.processes):
                line += (
                    f" on {length.processes} process(es): SOLVER.MAX_ITER {length.max_iter:,} is "
                    f"for {length.reference} (SOLVER.REFERENCE_WORLD_SIZE)"
                )
            if task_value(task, "TEST.PRECISE_BN.ENABLED"):
                batches = task_value(task, "TEST.PRECISE_BN.NUM_ITER")
                line += f"; before each evaluation {batches:,} batches of precise BatchNorm"
            lines.append(line)
    return list(dict.fromkeys(lines))


def _of_task(stage: Stage) -> Length:
    settings = stage.settings
    processes = settings.get("num_gpus", 1) * settings.get("num_nodes", 1)
    return Length.of(settings["detectron2"], processes)
