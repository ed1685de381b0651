"""detectron2's DefaultTrainer with evaluation, a metrics file, and a clean stop on signals."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn
from torch.optim import AdamW, Optimizer

from transfer.evaluation import build_evaluator, flat_metrics
from transfer.history import record_evaluation

METRICS = "metrics.jsonl"
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: saved, to be started again


class MetricsWriter(EventWriter):  # type: ignore[misc]
    """Appends the latest scalars to `metrics.jsonl`, one JSON object a line with `step`."""

    def __init__(self, path: Path, max_steps: int) -> None:
        self.path = path
        self.max_steps = max_steps

    def write(self) -> None:
        """Append what was logged at the current iteration."""
        storage = get_event_storage()
        step = min(storage.iter + 1, self.max_steps)  # the evaluation comes after the last step
        entry: dict[str, float] = {"step": step, "max_steps": self.max_steps}
        for name, (value, iteration) in storage.latest().items():
            evaluated = name.startswith(("bbox/", "segm/"))  # has a line of its own
            if iteration == storage.iter and math.isfinite(value) and not evaluated:
                entry[name] = value
        if len(entry) == 2:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class StopOnSignal(HookBase):  # type: ignore[misc]
    """Saves and leaves with code 75 after the iteration in which a signal asked to stop."""

    def __init__(self) -> None:
        self.received = False
        self.before: dict[int, Any] = {}

    def before_train(self) -> None:
        """Take over the signals."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            self.before[number] = signal.signal(number, self._receive)

    def after_step(self) -> None:
        """Save and leave, if asked to."""
        if self.received:
            iteration = self.trainer.iter
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            raise SystemExit(EXIT_INTERRUPTED)

    def after_train(self) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = True


class Trainer(DefaultTrainer):  # type: ignore[misc]
    """Trains one model; `metrics` has its last evaluation and the best, in percent."""

    def __init__(self, cfg: CfgNode) -> None:
        self.metrics: dict[str, float] = {}
        super().__init__(cfg)
        if "state_dict" not in vars(DefaultTrainer):  # detectron2 0.6 forgets the optimiser
            self.checkpointer.add_checkpointable("optimizer", self.optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Return the evaluator of a set, by its layout."""
        return build_evaluator(dataset_name, Path(cfg.OUTPUT_DIR), masks=cfg.MODEL.MASK_ON)

    def build_writers(self) -> list[EventWriter]:
        """Return detectron2's writers and `metrics.jsonl`."""
        path = Path(self.cfg.OUTPUT_DIR) / METRICS
        return [*super().build_writers(), MetricsWriter(path, self.max_iter)]

    def build_hooks(self) -> list[HookBase]:
        """Return detectron2's hooks with an evaluation that keeps its metrics, and the stop."""

        def evaluate() -> dict[str, Any]:
            results: dict[str, Any] = self.test(self.cfg, self.model)
            if comm.is_main_process():
                path, done = Path(self.cfg.OUTPUT_DIR) / METRICS, min(self.iter + 1, self.max_iter)
                self.metrics = record_evaluation(path, flat_metrics(results), done, self.max_iter)
            return results

        built: list[HookBase] = []
        for hook in super().build_hooks():
            if isinstance(hook, hooks.EvalHook):
                built += [StopOnSignal(), hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate)]
            else:
                built.append(hook)
        return built


class AdamWTrainer(Trainer):
    """The same with AdamW; learning rate, weight decay and clipping come from SOLVER as for SGD."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """Return AdamW with the parameter groups that detectron2 gives to SGD."""
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        optimizer: Optimizer = maybe_add_gradient_clipping(cfg, AdamW)(
            params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )
        return optimizer


TRAINERS: dict[str, type[Trainer]] = {"sgd": Trainer, "adamw": AdamWTrainer}
