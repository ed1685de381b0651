"""Stage `finetune`: a backbone becomes detection AP."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog

from transfer.config.finetune import FinetuneConfig
from transfer.config.recipe import config_faults
from transfer.detection import Run, build_cfg, run_detector
from transfer.detection.cfg import (
    build_faults,
    check_companion,
    class_faults,
    data_faults,
    notes_before_start,
    weights_faults,
)
from transfer.detection.loader import category_ids, class_names, register
from transfer.detection.pictures import write_pictures
from transfer.detection.precision import precision_faults, precision_of
from transfer.detection.run import machines_of, repair_last_checkpoint, run_on


def finetune(config: FinetuneConfig, weights: Path | None, output_dir: Path) -> dict[str, float]:
    """Train and evaluate one detector, resuming what `output_dir` holds; return its AP in percent.

    Args:
        config: the task: detectron2's keys, the sets they name, seed, optimiser, GPUs and machines.
        weights: a `.pkl` of `convert_checkpoint` beside its `.json`; None starts from random.
        output_dir: gets checkpoints, metrics, predictions and pictures.

    Returns:
        `bbox/AP`, `segm/AP50`, `bbox/AP-<class>` and so on of the last evaluation, its `iteration`,
        and averages of the best one as `best/bbox/AP`. Nothing on all machines but the first.

    Raises:
        ValueError: the config contradicts the weights, an entry was not loaded, or it diverged.

    Example:
        >>> import json, tempfile
        >>> from PIL import Image
        >>> from transfer.config.data import CocoData
        >>> task = {  # over detectron2's defaults: Faster R-CNN on ResNet-50's res4
        ...     "MODEL": {"ROI_HEADS": {"NUM_CLASSES": 1}, "RPN": {"POST_NMS_TOPK_TRAIN": 8}},
        ...     "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
        ...     "DATASETS": {"TRAIN": ["squares"], "TEST": ["squares"]},
        ...     "SOLVER": {"MAX_ITER": 1, "STEPS": []}, "DATALOADER": {"NUM_WORKERS": 0},
        ... }
        >>> square = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40]}
        >>> content = {
        ...     "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 64}],
        ...     "categories": [{"id": 1, "name": "square"}],
        ...     "annotations": [square | {"area": 1600, "iscrowd": 0}],
        ... }
        >>> with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        ...     Image.new("RGB", (64, 64)).save(f"{folder}/1.png")
        ...     Path(folder, "squares.json").write_text(json.dumps(content))
        ...     squares = CocoData(annotations=Path(folder, "squares.json"), images=Path(folder))
        ...     config = FinetuneConfig(detectron2=task, datasets={"squares": squares})
        ...     metrics = finetune(config, None, Path(folder, "run"))
        >>> metrics["iteration"], 0 <= metrics["bbox/AP"] <= 100
        (1, True)
    """
    machines = machines_of(config.num_gpus, config.num_nodes)
    refuse(check_recipe(config))
    register(config.datasets)
    cfg = build_cfg(config, weights, output_dir)
    faults = class_faults(cfg) + precision_faults(cfg) + gpu_faults(config)
    if weights is not None:
        check_companion(cfg, weights)
        faults += weights_faults(cfg)
    refuse(faults)
    if machines.node == 0:
        repair_last_checkpoint(output_dir)
    run = Run(cfg, dict(config.datasets), config.optimizer)
    metrics = run_on(machines, run_detector, (run,), output_dir)
    if machines.node == 0:
        _finish(cfg.DATASETS.TEST[0], config.num_pictures, output_dir)
    return metrics


def _finish(test_set: str, num_pictures: int, output_dir: Path) -> None:
    """Draw pictures of the result; drop the checkpoints that only a resumed run needs."""
    with redirect_stdout(io.StringIO()):
        records = DatasetCatalog.get(test_set)
    names, ids = class_names(test_set), category_ids(test_set)
    write_pictures(records, names, ids, output_dir, num_pictures)
    for path in output_dir.glob("model_[0-9]*.pth"):
        path.unlink()


def refuse(faults: list[str]) -> None:
    """Raise ValueError with the faults, if there are any."""
    if faults:
        raise ValueError("; ".join(faults))


def run_stage(
    config: dict[str, Any], inputs: dict[str, Path], output_dir: Path
) -> dict[str, float]:
    """Entry point for the pipeline: `finetune` with the converted weights, or from random."""
    return finetune(FinetuneConfig.model_validate(config), inputs.get("weights"), output_dir)


def strip_state(path: Path, target: Path | None) -> int:
    """Return the bytes of the optimiser's state in a checkpoint; write it without to `target`.

    Weights, schedule and iteration stay: it is evaluated as before; no training goes on from it.

    Raises:
        ValueError: the file that was written has not the same weights.
    """
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state = content.pop("optimizer", {}).get("state", {})
    tensors = [
        value for slots in state.values() for value in slots.values() if torch.is_tensor(value)
    ]
    if target is not None:
        torch.save(content, target)
        written = torch.load(target, map_location="cpu", weights_only=True, mmap=True)
        same = (
            content.keys() == written.keys() and content["model"].keys() == written["model"].keys()
        )
        if not same or not all(
            torch.equal(value, written["model"][name]) for name, value in content["model"].items()
        ):
            raise ValueError(f"{path}: could not be written again; left as it is")
    return sum(tensor.nbytes for tensor in tensors)


def check_stage(config: dict[str, Any]) -> list[str]:
    """Return what would stop the run: faults in the recipe, then in the data."""
    settings = FinetuneConfig.model_validate(config)
    if faults := check_recipe(settings):
        return faults
    return data_faults(build_cfg(settings, None, Path()), settings.datasets) or check_classes(
        settings
    )


def check_recipe(settings: FinetuneConfig) -> list[str]:
    """Return what would stop the run whatever is in its data."""
    return config_faults(settings) or build_faults(
        build_cfg(settings, None, Path()), settings.optimizer
    )


def check_inputs(config: dict[str, Any], inputs: list[list[str]]) -> list[str]:
    """Return what of its weights a detector would lose; `inputs` has the roles of each stage's."""
    if all("weights" not in roles for roles in inputs):
        return []
    return weights_faults(build_cfg(FinetuneConfig.model_validate(config), None, Path()))


def check_classes(settings: FinetuneConfig) -> list[str]:
    """Return how the classes of sets that are sound contradict each other or the config."""
    register(settings.datasets)
    with redirect_stdout(io.StringIO()):
        return class_faults(build_cfg(settings, None, Path()))


def stage_notes(config: dict[str, Any], inputs: list[list[str]]) -> list[str]:
    """Return what stops nothing and is seldom meant; `inputs` has the roles of each stage's."""
    settings = FinetuneConfig.model_validate(config)
    has_weights = all("weights" in roles for roles in inputs)
    cfg = build_cfg(settings, None, Path())
    return notes_before_start(cfg, settings.datasets, has_weights=has_weights)


def stage_precision(config: dict[str, Any]) -> str:
    """Return in which types a detector is trained and evaluated, for the provenance."""
    return precision_of(build_cfg(FinetuneConfig.model_validate(config), None, Path()))


def check_machine(config: dict[str, Any], num_processes: int = 1) -> list[str]:
    """Return what this one machine lacks: GPUs that are asked for, and for a precision.

    The task's own keys say how many processes there are.
    """
    del num_processes
    settings = FinetuneConfig.model_validate(config)
    faults = [] if config_faults(settings) else precision_faults(build_cfg(settings, None, Path()))
    return faults + gpu_faults(settings, num_nodes=settings.num_nodes)


def gpu_faults(config: FinetuneConfig, num_nodes: int = 1) -> list[str]:
    """Return that a machine has too few GPUs for a task, or that it takes several machines."""
    num_gpus = torch.cuda.device_count()
    if num_nodes == 1 and config.num_gpus <= max(num_gpus, 1):
        return []
    return [
        f"a task asks for num_gpus {config.num_gpus} on num_nodes {config.num_nodes}, but this is "
        f"one machine with {num_gpus} GPUs; lower them in the task (results then are others), or "
        "run with --executor slurm"
    ]
