"""Train or evaluate one detector from a complete config, in this process and its peers."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.utils import comm

from transfer.config.data import DetectionData
from transfer.config.finetune import Optimizer
from transfer.datasets.register import register
from transfer.detection.hooks import METRICS
from transfer.detection.memory import memory_estimate
from transfer.detection.trainer import TRAINERS, Diverged, Trainer
from transfer.detection.weights import check_loaded
from transfer.evaluation.evaluators import flat_metrics

EFFECTIVE = "effective_config.yaml"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What to train or to evaluate; `cfg` names its weights and its output folder."""

    cfg: CfgNode
    datasets: dict[str, DetectionData]
    optimizer: Optimizer = "sgd"
    resume: bool = True
    eval_only: bool = False


def train(run: Run) -> dict[str, float]:
    """Train, evaluate and return the metrics, AP in percent; what OUTPUT_DIR holds is resumed.

    Raises:
        ValueError: an entry of the weights was not loaded, or training diverged.
    """
    register(run.datasets)
    cfg = effective_config(run.cfg, comm.get_world_size())
    default_setup(cfg, argparse.Namespace())
    folder = Path(cfg.OUTPUT_DIR)
    trainer = TRAINERS[run.optimizer](cfg)
    trainer.resume_or_load(resume=run.resume)
    if trainer.start_iter == 0 and cfg.MODEL.WEIGHTS:
        check_loaded(trainer.checkpointer.model, Path(cfg.MODEL.WEIGHTS))
    if comm.is_main_process():
        (folder / EFFECTIVE).write_text(cfg.dump(), encoding="utf-8")
        logger.info("%s", settings_line(cfg, comm.get_world_size()))
        model, optimizer = trainer.checkpointer.model, trainer.optimizer
        logger.info("%s", memory_estimate(cfg, model, optimizer, comm.get_world_size()))
        drop_metrics_after(folder / METRICS, trainer.start_iter)
    try:
        trainer.train()
    except Diverged as error:
        half = ", SOLVER.AMP.ENABLED False" if cfg.SOLVER.AMP.ENABLED else ""
        raise ValueError(
            f"training diverged at iteration {trainer.iter} of {trainer.max_iter} ({error}); try a "
            f"smaller SOLVER.BASE_LR (it is {cfg.SOLVER.BASE_LR:g} for {cfg.SOLVER.IMS_PER_BATCH} "
            f"images a step), a longer warm-up, or another MODEL.RESNETS.NORM{half}"
        ) from None
    return trainer.metrics


def evaluate(run: Run) -> dict[str, float]:
    """Return the metrics of MODEL.WEIGHTS, or with `resume` of the last checkpoint in OUTPUT_DIR.

    Raises:
        ValueError: the weights are not those of the whole detector.
    """
    cfg, folder = run.cfg, Path(run.cfg.OUTPUT_DIR)
    resumed = run.resume and (folder / "last_checkpoint").exists()
    if not resumed and not cfg.MODEL.WEIGHTS:
        raise ValueError("nothing to evaluate: MODEL.WEIGHTS is empty")
    register(run.datasets)
    default_setup(cfg, argparse.Namespace(eval_only=True))
    model = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    weights = checkpointer.get_checkpoint_file() if resumed else cfg.MODEL.WEIGHTS
    checkpointer.load(weights, checkpointables=[])
    check_loaded(model, Path(weights), whole=True)
    results = Trainer.test(cfg, model)
    if not comm.is_main_process():
        return {}
    return flat_metrics(results)


def run_detector(run: Run) -> dict[str, float]:
    """Evaluate or train, as the run says."""
    return evaluate(run) if run.eval_only else train(run)


def effective_config(cfg: CfgNode, world_size: int) -> CfgNode:
    """Return the config as detectron2 scales it from SOLVER.REFERENCE_WORLD_SIZE to `world_size`.

    Raises:
        ValueError: the images of a step cannot be dealt to the processes.
    """
    images = cfg.SOLVER.IMS_PER_BATCH
    parts = cfg.SOLVER.REFERENCE_WORLD_SIZE or world_size
    if images % parts:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {images}, wanted a multiple of {parts} processes"
        )
    scaled: CfgNode = DefaultTrainer.auto_scale_workers(cfg, world_size)
    return scaled


def settings_line(cfg: CfgNode, world_size: int) -> str:
    """Return the numbers that a run really uses, in one line."""
    solver = cfg.SOLVER
    return (
        f"{world_size} process(es) on {cfg.MODEL.DEVICE}: {solver.IMS_PER_BATCH} images a step, "
        f"learning rate {solver.BASE_LR:g}, {solver.MAX_ITER} iterations, drops at "
        f"{list(solver.STEPS)}, warm-up {solver.WARMUP_ITERS}, seed {cfg.SEED}"
        f"{', AMP' if solver.AMP.ENABLED else ''}; all of it: {EFFECTIVE}"
    )


def drop_metrics_after(path: Path, step: int) -> None:
    """Drop the lines that a killed run logged after the checkpoint it is resumed from."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")
