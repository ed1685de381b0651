"""`tools/train_net.py`: detectron2's command line for one detector, in one or many processes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from transfer.config.command_line import Loader, argument_parser, merged_config, parsed
from transfer.config.data import DetectionData, known_datasets
from transfer.config.recipe import recipe_faults, value_faults
from transfer.detection.cfg import (
    build_faults,
    check_companion,
    class_faults,
    data_faults,
    default_cfg,
    for_this_machine,
    weights_fault,
)
from transfer.detection.evaluation import as_json
from transfer.detection.loader import register
from transfer.detection.precision import precision_faults
from transfer.detection.resume_check import evaluation_faults, resume_faults, weights_ignored
from transfer.detection.run import (
    Machines,
    Run,
    effective_config,
    repair_last_checkpoint,
    run_detector,
    run_on,
)
from transfer.files import did_you_mean

TORCHRUN = (
    "train_net: torchrun started {} processes, but train_net starts its own, one for each GPU; run "
    "it without torchrun: python tools/train_net.py --num-gpus N (more machines: --num-machines, "
    "--machine-rank, --dist-url)"
)
MEASURED = ("coco", "pascal_voc")  # detectron2's names of the rules by which AP is measured here
logger = logging.getLogger(__name__)


def main(
    description: str | None = None,
    arguments: list[str] | None = None,
    load: Loader = CfgNode.load_yaml_with_base,
) -> int:
    """Return 0 when the metrics are printed, 2 when the user has something to fix.

    `load` reads a config file with its `_BASE_`.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        tell_once(TORCHRUN.format(os.environ["WORLD_SIZE"]))
        return 2
    options = parsed(argument_parser(description), sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        metrics = execute(options, load)
    except (ValueError, OSError) as error:
        print(f"train_net: {error}", file=sys.stderr)
        return 2
    if metrics:
        print(json.dumps(as_json(metrics), indent=2, allow_nan=False))
    return 0


def tell_once(text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Print a text from one of torchrun's processes; none of them returns before it is printed.

    torchrun ends all as soon as one has left, so the first one to come prints and the others wait
    for it. They agree in the store that torchrun keeps; without one the first by rank prints.
    """
    store, is_first = None, environment.get("RANK") == "0"
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        place = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        with suppress(DistError):
            store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=10))
            is_first = store.add("train_net/told", 1) == 1
    if is_first:
        print(text, file=sys.stderr, flush=True)
    if store is not None:
        with suppress(DistError):  # the one that prints was ended by something else
            if is_first:
                store.set("train_net/printed", "")
            else:
                store.wait(["train_net/printed"])


def execute(options: argparse.Namespace, load: Loader) -> dict[str, float]:
    """Return the metrics of the run that the command line asks for.

    Raises:
        ValueError: something in the config, the weights or the data has to be fixed first.
    """
    machines = machines_for(options)
    cfg = read_config(options.config_file, options.opts or [], load, options.optimizer)
    if faults := value_faults(cfg):
        raise ValueError("\n".join(f"{options.config_file}: {fault}" for fault in faults))
    cfg = for_this_machine(cfg)
    datasets = named_datasets(cfg)
    optimizer = cfg.SOLVER.OPTIMIZER
    faults = build_faults(cfg, optimizer)
    faults += recipe_faults(cfg, datasets, machines.num_processes)
    faults += precision_faults(cfg, trains=not options.eval_only)
    if faults:
        raise ValueError("\n".join(f"{options.config_file}: {fault}" for fault in faults))
    faults = [fault for fault in [weights_fault(cfg.MODEL.WEIGHTS)] if fault]
    if faults := faults + data_faults(cfg, datasets, trains=not options.eval_only):
        raise ValueError("\n".join(faults))
    register(datasets)
    if faults := class_faults(cfg):
        raise ValueError("; ".join(faults))
    if cfg.MODEL.WEIGHTS.endswith(".pkl"):
        check_companion(cfg, Path(cfg.MODEL.WEIGHTS))
    folder = Path(cfg.OUTPUT_DIR)
    if options.resume:
        check_resume(cfg, datasets, machines, options)
    if options.eval_only:
        resumed = options.resume and (folder / "last_checkpoint").exists()
        if faults := evaluation_faults(cfg, folder if resumed else Path(cfg.MODEL.WEIGHTS).parent):
            raise ValueError("\n".join(faults))
    run = Run(cfg, datasets, optimizer, options.resume, options.eval_only)
    return run_on(machines, run_detector, (run,), folder)


def check_resume(
    cfg: CfgNode,
    datasets: dict[str, DetectionData],
    machines: Machines,
    options: argparse.Namespace,
) -> None:
    """Compare config, weights and data with those of OUTPUT_DIR, if it holds a checkpoint.

    Raises:
        ValueError: a line for each setting that would be ignored, or would change the result.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if machines.node == 0:
        repair_last_checkpoint(folder)
    if not (folder / "last_checkpoint").exists():
        logger.warning("--resume, but %s has no checkpoint: starting anew", folder)
        return
    if options.eval_only:
        faults = [fault for fault in [weights_ignored(cfg, folder)] if fault]
    else:
        scaled = effective_config(cfg, machines.num_processes)
        faults = resume_faults(scaled, folder, cfg.SOLVER.OPTIMIZER, datasets)
    if faults:
        raise ValueError("\n".join(faults))


def machines_for(options: argparse.Namespace) -> Machines:
    """Return the machines that the command line names; without any GPU one process on the CPU."""
    if not torch.cuda.is_available():
        if options.num_machines > 1:
            raise ValueError("--num-machines: this machine has no CUDA device")
        if options.num_gpus > 1:
            logger.warning("no CUDA device: one process instead of %d", options.num_gpus)
        return Machines()
    return Machines(
        max(1, options.num_gpus), options.num_machines, options.machine_rank, options.dist_url
    )


def read_config(
    path: str,
    changes: list[str],
    load: Loader = CfgNode.load_yaml_with_base,
    optimizer: str | None = None,
) -> CfgNode:
    """Return detectron2's defaults with the file at `path`, `KEY VALUE` changes and an optimiser.

    Raises:
        ValueError: the file is not there, or a key or value is none of detectron2's.
    """
    cfg: CfgNode = merged_config(default_cfg(), path, changes, load, optimizer)
    return cfg


def named_datasets(cfg: CfgNode) -> dict[str, DetectionData]:
    """Return this project's data sets that the config names; detectron2's other ones stay its own.

    Raises:
        ValueError: a name that neither knows, or a test set of another rule than COCO's and VOC's.
    """
    known = known_datasets()
    names = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    unknown = [name for name in names if name not in known and name not in DatasetCatalog.list()]
    if unknown:
        listed = f"{did_you_mean(unknown[0], known)} known: {', '.join(sorted(known))}"
        raise ValueError(
            f"unknown data set {', '.join(unknown)};{listed}; one of your own is an entry under "
            "`datasets:` of a pipeline config, which tools/run_pipeline.py runs "
            "(docs/bring-your-own-data.md)"
        )
    rules = {name: MetadataCatalog.get(name).get("evaluator_type") for name in cfg.DATASETS.TEST}
    for name, rule in rules.items():
        if name not in known and rule not in MEASURED:
            raise ValueError(
                f"DATASETS.TEST is {name}, which is measured by other rules ({rule}); wanted a set "
                f"that COCO's or VOC's AP is of: {', '.join(sorted(known))}"
            )
    if others := [name for name in names if name not in known]:
        logger.warning(
            "%s: detectron2's own, so neither files nor images that TRAIN and TEST share are "
            "checked", ", ".join(others),
        )  # fmt: skip
    return {name: known[name] for name in names if name in known}
