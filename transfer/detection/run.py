"""One detector's run: one process or several, training or evaluation, all weights accounted for.

An executor starts one process per machine, with RANK (which machine), WORLD_SIZE (how many),
MASTER_ADDR and MASTER_PORT in its environment; detectron2 starts one per GPU of a machine.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import math
import multiprocessing
import os
import pickle
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from transfer.config.data import DetectionData, content_digest
from transfer.config.finetune import Optimizer
from transfer.config.recipe import batch_fault
from transfer.detection.cfg import notes_before_start
from transfer.detection.evaluation import as_json, flat_metrics
from transfer.detection.loader import register
from transfer.detection.precision import precision_of
from transfer.detection.trainer import (
    EXIT_INTERRUPTED,
    METRICS,
    SIGNALS,
    TRAINERS,
    Diverged,
    Trainer,
    Unreadable,
)
from transfer.files import sha256_of, write_json
from transfer.resnet import PLACES, lost_entries, unfilled_fault

EFFECTIVE = "effective_config.yaml"
INPUTS = "inputs.json"  # digests of the weights and the sets that a folder was trained with
RESULT = ".launched.json"
EXIT_FAULT = 2
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
GB = 1e9
COPIES = {"SGD": 3, "AdamW": 4}  # of each parameter: weight, gradient, what the optimiser keeps
KEPT = (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)
logger = logging.getLogger(__name__)
Metrics = dict[str, float]


@dataclass(frozen=True)
class Run:
    """A detector to train or to evaluate; `cfg` names its weights and its output folder."""

    cfg: CfgNode
    datasets: dict[str, DetectionData]
    optimizer: Optimizer = "sgd"
    resume: bool = True
    eval_only: bool = False


@dataclass(frozen=True)
class Machines:
    """GPUs on each machine, how many machines, which one this is, and where they meet."""

    num_gpus: int = 1
    num_nodes: int = 1
    node: int = 0
    url: str = "auto"

    @property
    def num_processes(self) -> int:
        """Return the number of processes on all machines."""
        return self.num_gpus * self.num_nodes


def machines_of(
    num_gpus: int, num_nodes: int, environment: Mapping[str, str] = os.environ
) -> Machines:
    """Return what an executor's environment says, which must agree with the settings.

    Raises:
        ValueError: the executor started another number of machines, or does not say where to meet.
    """
    started = int(environment.get("WORLD_SIZE", "1"))
    if started != num_nodes:
        raise ValueError(
            f"num_nodes is {num_nodes}, but WORLD_SIZE says that {started} processes were started; "
            "wanted one process on each node"
        )
    if num_nodes == 1:
        return Machines(num_gpus)
    absent = [key for key in ("RANK", "MASTER_ADDR", "MASTER_PORT") if key not in environment]
    if absent:
        raise ValueError(f"{num_nodes} nodes, but no {', '.join(absent)} in the environment")
    url = f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    return Machines(num_gpus, num_nodes, int(environment["RANK"]), url)


def run_on(
    machines: Machines, function: Callable[..., Metrics], args: tuple[Any, ...], folder: Path
) -> Metrics:
    """Return `function(*args)` of the first process; on the other machines nothing.

    A signal reaches every process, so that all save and leave with code 75 together.

    Raises:
        ValueError: as `function` did, or there are too few GPUs.
    """
    if machines.num_processes == 1:
        return function(*args)
    if (num_gpus := torch.cuda.device_count()) < machines.num_gpus:
        raise ValueError(f"asked for {machines.num_gpus} GPUs, this machine has {num_gpus}")
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / RESULT
    if machines.node == 0:
        result.unlink(missing_ok=True)
    with signals_passed_on() as received:
        try:
            launch(
                in_one_process,
                machines.num_gpus,
                machines.num_nodes,
                machines.node,
                machines.url,
                args=(function, args, folder),
            )
        except ProcessExitedException as error:
            if received or error.exit_code == EXIT_INTERRUPTED:
                raise SystemExit(EXIT_INTERRUPTED) from None
            if error.exit_code == EXIT_FAULT and result.exists():
                raise ValueError(_taken(result)["fault"]) from None
            raise
    metrics = _taken(result)["metrics"] if machines.node == 0 else {}
    return {key: math.nan if value is None else value for key, value in metrics.items()}


def in_one_process(function: Callable[..., Metrics], args: tuple[Any, ...], folder: Path) -> None:
    """Call `function` and leave in `folder` what the first process returned, or what any refused.

    Raises:
        SystemExit: with code 2, for a fault that a user can fix.
    """
    logging.basicConfig(
        level=logging.INFO if comm.is_main_process() else logging.ERROR,
        format=LOG_FORMAT,
    )
    try:
        answer = {"metrics": as_json(function(*args))}
    except ValueError as error:
        write_json(folder / RESULT, {"fault": str(error)})
        raise SystemExit(EXIT_FAULT) from None
    if comm.is_main_process():
        write_json(folder / RESULT, answer)


@contextlib.contextmanager
def signals_passed_on() -> Iterator[list[int]]:
    """Pass signals on to the child processes; the list holds those that came."""
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        for child in multiprocessing.active_children():
            child.terminate()

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _taken(path: Path) -> Any:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return content


def run_detector(run: Run) -> Metrics:
    """Evaluate or train, as the run says."""
    return evaluate(run) if run.eval_only else train(run)


class PlainFormatter(logging.Formatter):
    """The lines of a file: those of a terminal without their colours."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return COLOURS.sub("", super().format(record))


def set_up(cfg: CfgNode, **told: Any) -> None:
    """Call detectron2's `default_setup`, with loggers that write each line once to a file.

    They write to standard output and to `OUTPUT_DIR/log.txt`: for a stage of the pipeline these are
    one file. `told` is what the log has of the command line.
    """
    folder, rank = cfg.OUTPUT_DIR, comm.get_rank()
    # the very calls that `default_setup` makes: what is set up already it leaves as it is
    fvcore = setup_logger(folder, distributed_rank=rank, name="fvcore")
    for log in (fvcore, setup_logger(folder, distributed_rank=rank)):
        streams = [each for each in log.handlers if isinstance(each, logging.StreamHandler)]
        for handler in streams:
            if not handler.stream.isatty():
                handler.setFormatter(PlainFormatter(LOG_FORMAT))
        with contextlib.suppress(OSError):  # a stream in memory is no file
            files = [os.fstat(handler.stream.fileno()) for handler in streams]
            if len(files) > 1 and os.path.samestat(files[0], files[-1]):
                log.removeHandler(streams[-1])
    default_setup(cfg, argparse.Namespace(**told))


def train(run: Run) -> Metrics:
    """Train, evaluate and return the metrics, AP in percent; what OUTPUT_DIR holds is resumed.

    Raises:
        ValueError: an entry of the weights was not loaded, or training diverged.
    """
    register(run.datasets)
    cfg = effective_config(run.cfg, comm.get_world_size())
    set_up(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    trainer = TRAINERS[run.optimizer](cfg)
    trainer.resume_or_load(resume=run.resume)
    if trainer.start_iter == 0 and cfg.MODEL.WEIGHTS:
        check_loaded(trainer.checkpointer.model, Path(cfg.MODEL.WEIGHTS))
    if comm.is_main_process():
        if trainer.start_iter == 0:  # an earlier run's checkpoints are none of this one's
            (folder / "last_checkpoint").unlink(missing_ok=True)
        drop_metrics_after(folder / METRICS, trainer.start_iter)
        tell_settings(cfg, run.datasets, trainer)
    try:
        trainer.train()
    except Unreadable as error:
        raise ValueError(str(error)) from None
    except Diverged as error:
        half = ", SOLVER.AMP.ENABLED False" if cfg.SOLVER.AMP.ENABLED else ""
        raise ValueError(
            f"training diverged at iteration {trainer.iter} of {trainer.max_iter} ({error}); try a "
            f"smaller SOLVER.BASE_LR (it is {cfg.SOLVER.BASE_LR:g} for {cfg.SOLVER.IMS_PER_BATCH} "
            f"images a step), a longer warm-up, or another MODEL.RESNETS.NORM{half}"
        ) from None
    return trainer.metrics


def evaluate(run: Run) -> Metrics:
    """Return the metrics of MODEL.WEIGHTS, or with `resume` of the last checkpoint in OUTPUT_DIR.

    Raises:
        ValueError: the weights are not those of the whole detector.
    """
    cfg, folder = run.cfg, Path(run.cfg.OUTPUT_DIR)
    resumed = run.resume and (folder / "last_checkpoint").exists()
    if not resumed and not cfg.MODEL.WEIGHTS:
        raise ValueError("nothing to evaluate: MODEL.WEIGHTS is empty")
    register(run.datasets)
    set_up(cfg, eval_only=True)
    model = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    weights = checkpointer.get_checkpoint_file() if resumed else cfg.MODEL.WEIGHTS
    checkpointer.load(weights, checkpointables=[])
    check_loaded(model, Path(weights), whole=True)
    results = Trainer.test(cfg, model)
    return flat_metrics(results) if comm.is_main_process() else {}


def effective_config(cfg: CfgNode, world_size: int) -> CfgNode:
    """Return the config as detectron2 scales it from SOLVER.REFERENCE_WORLD_SIZE to `world_size`.

    Raises:
        ValueError: the images of a step cannot be dealt to the processes.
    """
    if fault := batch_fault(cfg, world_size):
        raise ValueError(fault)
    scaled: CfgNode = DefaultTrainer.auto_scale_workers(cfg, world_size)
    return scaled


def tell_settings(cfg: CfgNode, datasets: Mapping[str, DetectionData], trainer: Trainer) -> None:
    """Log what a run really uses, and what may surprise; keep its config and the rule of its AP."""
    for note in notes_before_start(cfg, datasets, has_weights=bool(cfg.MODEL.WEIGHTS)):
        logger.warning("%s", note)
    (name,) = cfg.DATASETS.TEST
    rule = f"AP of {name}"
    if name in datasets:
        rule += f" is {datasets[name].ap_rule(cfg.TEST.DETECTIONS_PER_IMAGE)}"
    text = f"# {rule}\n{cfg.dump()}"
    folder = Path(cfg.OUTPUT_DIR)
    if trainer.start_iter == 0 or not (folder / INPUTS).exists():
        write_json(folder / INPUTS, input_digests(cfg, datasets))
    (folder / EFFECTIVE).write_text(text, encoding="utf-8")
    logger.info("%s; %s", settings_line(cfg, comm.get_world_size()), rule)
    model, optimizer = trainer.checkpointer.model, trainer.optimizer
    logger.info("%s", memory_estimate(cfg, model, optimizer, comm.get_world_size()))
    if trainer.start_iter >= trainer.max_iter:
        at = f"already at iteration {trainer.start_iter} of {trainer.max_iter}"
        logger.info("%s: nothing to train, evaluating what is there", at)


def input_digests(cfg: CfgNode, datasets: Mapping[str, DetectionData]) -> dict[str, str]:
    """Return digests of the content of what a run reads: MODEL.WEIGHTS if any, and its sets."""
    weights = cfg.MODEL.WEIGHTS
    used = [name for name in datasets if name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)]
    digests = {"MODEL.WEIGHTS": sha256_of(Path(weights))} if weights else {}
    return digests | {
        f"content of data set {name}": content_digest(datasets[name]) for name in used
    }


def settings_line(cfg: CfgNode, world_size: int) -> str:
    """Return the numbers that a run really uses, in one line."""
    solver = cfg.SOLVER
    return (
        f"{world_size} process(es) on {cfg.MODEL.DEVICE}: {solver.IMS_PER_BATCH} images a step, "
        f"learning rate {solver.BASE_LR:g}, {solver.MAX_ITER} iterations, drops at "
        f"{list(solver.STEPS)}, warm-up {solver.WARMUP_ITERS}, seed {cfg.SEED}"
        f", {precision_of(cfg)}; all of it: {EFFECTIVE}"
    )


def drop_metrics_after(path: Path, step: int) -> None:
    """Drop the lines that a killed run logged after the checkpoint it is resumed from."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")


def repair_last_checkpoint(output_dir: Path) -> None:
    """Let a pointer to a lost checkpoint point at the last that is kept, or go.

    A final model that is gone (or a pointer without any checkpoint) means starting over.
    """
    pointer = output_dir / "last_checkpoint"
    if not pointer.exists():
        return
    name = pointer.read_text(encoding="utf-8").strip()
    if name and (output_dir / name).is_file():
        return
    logger.warning("%s: names %r, which is not there", pointer, name)
    if kept := sorted(output_dir.glob("model_[0-9]*.pth")):
        pointer.write_text(kept[-1].name, encoding="utf-8")
    else:
        pointer.unlink()


def check_loaded(model: nn.Module, weights: Path, *, whole: bool = False) -> None:
    """Compare a model with the file it was loaded from, value by value and in both directions.

    `whole` demands every parameter of the model from the file, heads too, as an evaluation must.

    Raises:
        ValueError: an entry was lost, or a parameter that is no new head's was left random.
    """
    state = model.state_dict()
    if weights.suffix == ".pkl":
        with weights.open("rb") as file:
            entries = pickle.load(file)["model"]  # its companion has vouched for it
        lost = lost_entries(model, entries)
        names = {place + name for name in entries for place in PLACES}
    else:
        content = torch.load(weights, map_location="cpu", weights_only=True)["model"]
        lost = [
            name
            for name, value in content.items()
            if name not in state or not torch.equal(state[name].cpu(), value)
        ]
        names = set(content)
    if fault := unfilled_fault(state, lost, names, whole=whole):
        raise ValueError(f"{weights}: {fault}")


def memory_estimate(cfg: CfgNode, model: nn.Module, optimizer: Any, world_size: int) -> str:
    """Return one line: parameters and their copies, and what the backward pass needs.

    The latter counts the outputs of all convolutions and norms of the backbone, and of a C4
    detector's res5 over its proposals, for one process's images at the largest training size. What
    RPN, other heads and the libraries take is not in it.
    """
    kind = next(name for name in COPIES if name in type(optimizer).__name__)
    weights = COPIES[kind] * 4 * sum(parameter.numel() for parameter in model.parameters())
    num_images = max(1, cfg.SOLVER.IMS_PER_BATCH // world_size)
    short = max(cfg.INPUT.MIN_SIZE_TRAIN)
    long = min(cfg.INPUT.MAX_SIZE_TRAIN, round(short * 4 / 3))
    size = [-(-side // 32) * 32 for side in (short, long)]
    activations = _output_bytes(model.get_submodule("backbone"), [num_images, 3, *size])
    res5 = getattr(model.roi_heads, "res5", None)
    if res5 is not None:
        channels = next(res5.parameters()).shape[1]
        side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        num_boxes = num_images * cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
        activations += _output_bytes(res5, [num_boxes, channels, side, side])
    if cfg.SOLVER.AMP.ENABLED:
        activations //= 2
    return (
        f"memory, a rule of thumb: {(weights + activations) / GB:.1f} GB a process, of which "
        f"{weights / GB:.1f} for weights, gradients and {kind}, {activations / GB:.1f} for "
        f"{num_images} images of {size[0]} x {size[1]} in the backbone; RPN, heads and CUDA "
        "come on top"
    )


def _output_bytes(module: nn.Module, shape: list[int]) -> int:
    """Return the bytes of all convolutions' and norms' outputs; nothing is computed."""
    ghost = copy.deepcopy(module).to("meta").eval()
    total = 0

    def count(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += 4 * output.numel()

    for part in ghost.modules():
        if isinstance(part, KEPT):
            part.register_forward_hook(count)
    with torch.no_grad():
        ghost(torch.empty(shape, device="meta"))
    return total
