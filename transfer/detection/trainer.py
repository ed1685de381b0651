"""detectron2's DefaultTrainer with exact resuming; its hooks: stop, precise BatchNorm, metrics."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import Tensor, distributed, nn
from torch.optim import AdamW, Optimizer

from transfer.detection.evaluation import build_evaluator, flat_metrics, without_nan
from transfer.detection.loader import (
    ImageError,
    ImageMapper,
    SeededLoader,
    build_loader,
    derived_seed,
)
from transfer.detection.precision import set_tf32
from transfer.files import one_line

METRICS = "metrics.jsonl"
MAIN_METRIC = "bbox/AP"
AVERAGES = ("AP", "AP50", "AP75")
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: saved, to be started again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
ASK_PERIOD = 10  # iterations; to ask all processes takes milliseconds
TELL_EVERY_S = 10.0
MAX_CHECKPOINTS = 2
logger = logging.getLogger(__name__)


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


@dataclass
class LongPass:
    """Batches of a pass beside training, which says every ten seconds how far it is.

    In the log, and within a training as a line of `path` that has no metric, one at its beginning
    too: `doing` is what goes on, "evaluating 1,200/4,952". `num_each` batches or images, of all
    processes, come at a time.
    """

    batches: Any
    what: str
    total: int
    path: Path
    max_steps: int
    num_each: int = 1

    def __post_init__(self) -> None:
        try:
            self.step: int | None = min(get_event_storage().iter + 1, self.max_steps)
        except AssertionError:  # an evaluation without training
            self.step = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches; within a training its file is told at once that a pass begins."""
        last = time.monotonic()
        self._note(f"{self.what} 0/{self.total:,}")
        for number, batch in enumerate(self.batches, start=1):
            yield batch
            if time.monotonic() - last > TELL_EVERY_S and comm.is_main_process():
                last = time.monotonic()
                done = min(number * self.num_each, self.total)
                logger.info("%s", doing := f"{self.what} {done:,}/{self.total:,}")
                self._note(doing)

    def _note(self, doing: str) -> None:
        if self.step is not None and comm.is_main_process():
            entry = {"step": self.step, "max_steps": self.max_steps, "doing": doing}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


class StopOnSignal(HookBase):  # type: ignore[misc]
    """Saves and leaves with code 75 after the iteration in which a signal asked to stop.

    Of several processes all leave after the same iteration, whichever was asked: the next tenth one
    or the last.
    """

    def __init__(self) -> None:
        self.received = False
        self.before: dict[int, Any] = {}

    def before_train(self) -> None:
        """Take over the signals."""
        for number in SIGNALS:
            self.before[number] = signal.signal(number, self._receive)

    def after_step(self) -> None:
        """Save and leave, if asked to."""
        iteration = self.trainer.iter
        last = iteration + 1 == self.trainer.max_iter
        if comm.get_world_size() > 1 and (iteration + 1) % ASK_PERIOD and not last:
            return
        if any(comm.all_gather(self.received)):
            self.trainer.is_complete = False
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            comm.synchronize()  # who leaves first has the others stopped
            raise SystemExit(EXIT_INTERRUPTED)

    def after_train(self) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = True


def restarted_precise_bn(
    period: int, model: nn.Module, data_loader: Iterable[Any], num_iter: int, path: Path
) -> HookBase:
    """Return detectron2's precise BatchNorm, each time over the same images from their beginning.

    Every `period` iterations and after the last one `num_iter` batches are averaged; `path` gets
    how far it is.
    """

    def after_step(trainer: TrainerBase) -> None:
        done = trainer.iter + 1
        if done == trainer.max_iter or (period > 0 and done % period == 0):
            what = "precise BatchNorm"
            batches = LongPass(data_loader, what, num_iter, path, trainer.max_iter)
            hooks.PreciseBN(0, model, batches, num_iter).update_stats()

    return hooks.CallbackHook(after_step=after_step)


def record_evaluation(
    path: Path, metrics: Mapping[str, float], iteration: int, max_steps: int
) -> dict[str, float]:
    """Append one evaluation, and return the metrics of a run that ends here.

    These are the last evaluation's, its `iteration`, and `best/..` with `best/iteration`: the
    averages of the evaluation with the highest box AP, the first of equals.
    """
    entry = {key: value for key, value in metrics.items() if math.isfinite(value)}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": iteration, "max_steps": max_steps, **entry}) + "\n")
    best = max(evaluations(path), key=lambda evaluation: evaluation[MAIN_METRIC])
    averages = {
        f"best/{key}": value
        for key, value in best.items()
        if key.partition("/")[0] in ("bbox", "segm") and key.partition("/")[2] in AVERAGES
    }
    return {**metrics, "iteration": iteration, **averages, "best/iteration": best["step"]}


def evaluations(path: Path) -> list[dict[str, float]]:
    """Return the lines of a metrics file that are evaluations, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if MAIN_METRIC in entry]


class Diverged(BaseException):
    """A loss or a prediction is no longer finite.

    Not an `Exception`: of those detectron2 logs the whole stack, which says nothing to a user.
    """


class Unreadable(BaseException):
    """An image could not be read; no `Exception` for the same reason."""


class Trainer(DefaultTrainer):  # type: ignore[misc]
    """Trains one model; `metrics` has its last evaluation and the best, in percent."""

    cfg: CfgNode

    def __init__(self, cfg: CfgNode) -> None:
        self.metrics: dict[str, float] = {}
        self.is_complete = True
        super().__init__(cfg)
        if "state_dict" not in vars(DefaultTrainer):  # detectron2 0.6 forgets both
            self.checkpointer.add_checkpointable("optimizer", self.optimizer)
            if cfg.SOLVER.AMP.ENABLED:
                self.checkpointer.add_checkpointable("grad_scaler", self._trainer.grad_scaler)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Return the model; what no loss can reach is not trained.

        Float32 of this process is IEEE's from here on, or TF32 where MODEL.PRECISION says so.
        """
        set_tf32(cfg.MODEL.get("PRECISION") == "tf32")
        model: nn.Module = super().build_model(cfg)
        freeze_unread_outputs(cfg, model)
        pool_from_exact_boxes(model)
        if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.get("PRECISION") == "bf16":
            train_in_bfloat16(model, cfg.MODEL.DEVICE)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> SeededLoader:
        """Return the loader whose images follow from the seed and the iteration."""
        return build_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Return detectron2's loader of a set that is evaluated; it says how far it is."""
        loader = build_detection_test_loader(cfg, dataset_name, mapper=ImageMapper(cfg, False))
        path, num_images = Path(cfg.OUTPUT_DIR) / METRICS, len(loader.dataset)
        num_each = comm.get_world_size()  # an image a process
        return LongPass(loader, "evaluating", num_images, path, cfg.SOLVER.MAX_ITER, num_each)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Return the evaluator of a set, by its layout."""
        return build_evaluator(dataset_name, Path(cfg.OUTPUT_DIR), masks=cfg.MODEL.MASK_ON)

    def build_writers(self) -> list[EventWriter]:
        """Return detectron2's writers and `metrics.jsonl`."""
        path = Path(self.cfg.OUTPUT_DIR) / METRICS
        return [*super().build_writers(), MetricsWriter(path, self.max_iter)]

    def resume_or_load(self, resume: bool = True) -> None:
        """Load weights or a checkpoint, and go on with the images that come next."""
        super().resume_or_load(resume)
        self.data_loader.start = self.start_iter

    def run_step(self) -> None:
        """Run one iteration."""
        with self.faults_in_one_line():
            super().run_step()

    def after_step(self) -> None:
        """Run the hooks, of which some read images and some evaluate."""
        with self.faults_in_one_line():
            super().after_step()

    @contextmanager
    def faults_in_one_line(self) -> Iterator[None]:
        """Keep detectron2 from logging the stack of what a user can fix.

        Raises:
            Diverged: a loss or a prediction is NaN or infinite.
            Unreadable: an image is damaged or gone.
        """
        try:
            yield
        except FloatingPointError as error:
            self.is_complete = False
            raise Diverged(one_line(error)) from None
        except ImageError as error:
            self.is_complete = False
            raise Unreadable(str(error)) from None

    def evaluate(self) -> dict[str, Any]:
        """Return the results on the test set, unless the run was stopped or diverged.

        All processes evaluate the model that the first one saves.
        """
        if not self.is_complete:
            return {}
        share_buffers(self.model)
        results: dict[str, Any] = self.test(self.cfg, self.model)
        if comm.is_main_process():
            path, done = Path(self.cfg.OUTPUT_DIR) / METRICS, min(self.iter + 1, self.max_iter)
            self.metrics = record_evaluation(path, flat_metrics(results), done, self.max_iter)
        return without_nan(results)

    def build_hooks(self) -> list[HookBase]:
        """Return detectron2's hooks; those for precise BN, checkpoints and evaluation are ours."""
        cfg: CfgNode = self.cfg
        self.cfg = cfg.clone()
        self.cfg.defrost()
        self.cfg.TEST.PRECISE_BN.ENABLED = False  # else detectron2 reads all annotations again
        try:
            built = super().build_hooks()
        finally:
            self.cfg = cfg
        return [ours for hook in built for ours in self._in_place_of(hook)]

    def _in_place_of(self, hook: HookBase) -> list[HookBase]:
        """Return the hooks that take the place of one of detectron2's."""
        if isinstance(hook, hooks.PeriodicCheckpointer):
            period = self.cfg.SOLVER.CHECKPOINT_PERIOD
            return [hooks.PeriodicCheckpointer(self.checkpointer, period, None, MAX_CHECKPOINTS)]
        if isinstance(hook, hooks.EvalHook):
            return [StopOnSignal(), hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate)]
        if isinstance(hook, hooks.LRScheduler) and self.cfg.TEST.PRECISE_BN.ENABLED:
            seed = derived_seed("precise-bn", self.data_loader.seed)
            loader = dataclasses.replace(self.data_loader, seed=seed, num_workers=0)
            period, num_iter = self.cfg.TEST.EVAL_PERIOD, self.cfg.TEST.PRECISE_BN.NUM_ITER
            # as in detectron2 before a checkpoint is written
            path = Path(self.cfg.OUTPUT_DIR) / METRICS
            return [hook, restarted_precise_bn(period, self.model, loader, num_iter, path)]
        return [hook]


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


def share_buffers(model: nn.Module) -> None:
    """Give every process the running statistics of the first one; training does not read them.

    A BatchNorm that is not synchronised has others in each process.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def train_in_bfloat16(model: nn.Module, device: str) -> None:
    """Make the training forward passes of `model` autocast to bfloat16, within float16 too.

    detectron2 0.6 knows float16 only; newer versions take the type as an argument of AMPTrainer.
    """
    forward = model.forward

    def in_bfloat16(*arguments: Any, **named: Any) -> Any:
        kind = torch.device(device).type
        with torch.autocast(kind, dtype=torch.bfloat16) if model.training else nullcontext():
            return forward(*arguments, **named)

    model.forward = in_bfloat16


def pool_from_exact_boxes(model: nn.Module) -> None:
    """Make all pooling of `model` compute in the boxes' type where features are in a shorter one.

    detectron2 casts the boxes to the features' type, which of bfloat16 leaves a grid of 4 px above
    512 and of 8 px above 1024. Pooled features come back in the type they came in; torchvision
    computes in float32 under autocast as it is, so this costs nothing.
    """

    def exact(pool: Callable[..., Tensor], maps: list[Tensor], boxes: list[Any]) -> Tensor:
        types = [part.tensor.dtype for part in boxes]
        dtype = functools.reduce(torch.promote_types, types, maps[0].dtype)
        return pool([part.to(dtype) for part in maps], boxes).to(maps[0].dtype)

    for part in model.modules():
        if isinstance(part, ROIPooler):
            part.forward = functools.partial(exact, part.forward)


def freeze_unread_outputs(cfg: CfgNode, model: nn.Module) -> None:
    """Freeze the FPN outputs that neither RPN nor heads read.

    They never get a gradient, so nothing changes in one process; of several, each would stop at the
    second iteration because the others' gradients for them are missing.
    """
    outputs = {
        name.replace("fpn_output", "p"): part
        for name, part in model.get_submodule("backbone").named_children()
        if name.startswith("fpn_output")
    }
    read = {*cfg.MODEL.RPN.IN_FEATURES, *cfg.MODEL.ROI_HEADS.IN_FEATURES}
    if not read <= outputs.keys() and outputs:  # p6 is made of the highest output
        read.add(max(outputs))
    for name in outputs.keys() - read:
        outputs[name].requires_grad_(False)


TRAINERS: dict[str, type[Trainer]] = {"sgd": Trainer, "adamw": AdamWTrainer}
