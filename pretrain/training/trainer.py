"""The training loop: resumes at the step where it stopped, stops cleanly when asked.

V views, N images of this process, D embedding dimensions.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.config.pretrain import PretrainConfig
from pretrain.indicators import centred_indicators
from pretrain.losses.build import build_loss
from pretrain.losses.whitening import WhiteningLoss
from pretrain.models.encoder import SelfSupervisedModel
from pretrain.runtime.distributed import Processes, gather_with_gradient
from pretrain.runtime.random_state import seed_process
from pretrain.runtime.signals import EXIT_INTERRUPTED, StopRequest
from pretrain.training import precision, resume
from pretrain.training.divergence import DivergedError, describe, save_dump
from pretrain.training.metrics import METRICS, MetricsLog, final_metrics
from pretrain.training.optimizers import build_optimizer
from pretrain.training.progress import TrainingProgress
from pretrain.training.schedule import Length, covariance_weight, lr_factor
from pretrain.views.loader import derived_seed
from pretrain.views.sharded import build_views

logger = logging.getLogger(__name__)


class Output(NamedTuple):
    """What this process's part of a batch gave, detached."""

    loss: Tensor
    encoding: Tensor  # [V, N, F]
    embedding: Tensor  # [V, N, D]


class Trainer:
    """State of one run, and the loop over it; every process of the run has one.

    `after_epoch` is called by every process at the end of each epoch, before its state is saved;
    what it returns on rank 0 is logged. It may leave the model in either mode, and what it draws
    from the global random states is undone. It should return soon once `stop.number` is not 0.
    """

    def __init__(
        self,
        config: PretrainConfig,
        output_dir: Path,
        processes: Processes,
        after_epoch: Callable[[Trainer], dict[str, float]] | None = None,
    ) -> None:
        if faults := precision.machine_faults(config, processes):
            raise ValueError("; ".join(faults))
        precision.warn_of_slowness(config.compute, processes.device)
        self.config = config
        self.output_dir = output_dir
        self.processes = processes
        self.after_epoch = after_epoch
        self.views = build_views(config, processes)
        self.length = Length.of(config, self.views.num_images)
        torch.manual_seed(derived_seed(config.seed))
        self.model = SelfSupervisedModel(config.model)
        precision.prepare(self.model, config.compute, processes)
        self.loss = build_loss(config.loss).to(processes.device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.scaler = precision.grad_scaler(config.compute, processes.device)
        own = (processes.rank,) if processes.rank else ()
        self.generator = torch.Generator().manual_seed(derived_seed(config.seed, 2, *own))
        seed_process(config.seed, processes.rank)
        self.stop = StopRequest()
        self.step = 0

    @property
    def epoch(self) -> int:
        """Return how many epochs are over."""
        return self.step // self.length.steps_per_epoch

    @property
    def step_in_epoch(self) -> int:
        """Return how many steps of the current epoch are over."""
        return self.step % self.length.steps_per_epoch

    def train(self) -> dict[str, float]:
        """Run to the last step and return the final metrics, on rank 0.

        Raises:
            DivergedError: the loss or its gradient is not finite.
            SystemExit: a signal asked to stop; the state is saved, the code is 75.
        """
        with ExitStack() as stack:
            stack.enter_context(self.stop)
            resume.resume(self)
            parallel = precision.parallel(self.model, self.processes)
            report = Report(self, stack)
            for views in self._batches():
                self._set_rates()
                output = self.gradients(parallel, views)
                loss, signal = self._agree(output, views, self.stop.number)
                self.update()
                self.step += 1
                report.stepped(output, loss)
                self._after_step(report, signal)
        return final_metrics(self.output_dir / METRICS) if self.processes.is_first else {}

    def _batches(self) -> Iterator[Tensor]:
        """Yield views `[V, N, 3, H, W]` from the current step to the last."""
        while self.step < self.length.total_steps:
            for views in self.views.batches(self.epoch, self.step_in_epoch):
                yield views
                if self.step >= self.length.total_steps:
                    return

    def _set_rates(self) -> None:
        config = self.config
        factor = lr_factor(self.step, self.length, config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * config.optimizer.base_lr(config.batch_size)
        if isinstance(self.loss, WhiteningLoss):
            self.loss.covariance_weight = covariance_weight(self.step, self.length, config)

    def gradients(self, parallel: torch.nn.Module, views: Tensor) -> Output:
        """Leave the gradients of the global batch in the parameters, fp16's scaled."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        settings, device = self.config.compute, self.processes.device
        parts = views.chunk(settings.accumulate, dim=1)
        outputs = []
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            with nullcontext() if last else precision.without_averaging(parallel):
                with precision.autocast(settings, device):
                    encoding, embedding = parallel(part)
                loss = self.loss(embedding, generator=self.generator) / len(parts)
                self.scaler.scale(loss).backward()
            outputs.append(Output(loss.detach(), encoding.detach(), embedding.detach()))
        if len(outputs) == 1:
            return outputs[0]
        losses, encodings, embeddings = zip(*outputs, strict=True)
        return Output(torch.stack(losses).sum(), torch.cat(encodings, 1), torch.cat(embeddings, 1))

    def update(self) -> None:
        """Take the optimiser's step; under fp16 not if a scaled gradient overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _agree(self, output: Output, views: Tensor, signal: int) -> tuple[float, int]:
        """Return the mean loss over all processes, and a signal that any of them has got.

        fp16's gradients may overflow: its scaler leaves such steps out and halves its factor, which
        falls on and on where the gradients themselves are not finite.
        """
        norm = output.loss.new_zeros(())
        if self.scaler.is_enabled():
            norm += math.inf if self.scaler.get_scale() < precision.LEAST_SCALE else 0
        else:
            slopes = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(slopes).to(output.loss.dtype)
        rows = self.processes.exchange([*torch.stack([output.loss, norm]).tolist(), float(signal)])
        losses, norms, signals = (list(column) for column in zip(*rows, strict=True))
        if not all(map(math.isfinite, losses + norms)):
            self._stop_diverged(output, views, losses, norms)
        return sum(losses) / len(losses), int(max(signals))

    def _stop_diverged(
        self, output: Output, views: Tensor, losses: list[float], norms: list[float]
    ) -> None:
        rank, lr = self.processes.rank, float(self.optimizer.param_groups[0]["lr"])
        content: dict[str, Any] = {
            "step": self.step,
            "lr": lr,
            "losses": losses,
            "gradient_norms": norms,
            "views": views,
            **output._asdict(),
            "config": self.config.identity(),
        }
        if rank == 0:
            content["model"] = self.model.state_dict()
        save_dump(content, self.output_dir, rank)
        self.processes.wait_for_all()
        total = self.length.total_steps
        raise DivergedError(describe(losses, norms, self.step, total, lr, self.output_dir))

    def _after_step(self, report: Report, signal: int) -> None:
        config, at_end = self.config, self.step == self.length.total_steps
        self.stop.number = signal or self.stop.number
        if self.step_in_epoch == 0:
            self._end_epoch(report)
        if signal or at_end or self.step % config.checkpoint_every == 0:
            resume.save(self)
        if signal and not at_end:
            self.processes.wait_for_all()  # none ends before rank 0 has saved
            if self.processes.is_first:
                logger.warning("signal %d: saved at step %d", signal, self.step)
            raise SystemExit(EXIT_INTERRUPTED)

    def _end_epoch(self, report: Report) -> None:
        if self.after_epoch is not None:
            devices = [self.processes.device] if self.processes.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                found = self.after_epoch(self)
            self.processes.wait_for_all()  # here and not in nccl, which gives up sooner
            if found:
                total = self.length.total_steps
                report.write({"step": float(self.step), "max_steps": total, **found})
        every = self.config.keep_every_epochs
        if every is not None and self.epoch % every == 0:
            resume.save(self, f"epoch_{self.epoch:04d}.pth")


class Report:
    """The log and the progress bar of rank 0; the other ranks only help to compute."""

    def __init__(self, trainer: Trainer, stack: ExitStack) -> None:
        self.trainer = trainer
        self.log: MetricsLog | None = None
        self.progress: TrainingProgress | None = None
        if trainer.processes.is_first:
            self.log = stack.enter_context(MetricsLog(trainer.output_dir, trainer.step))
            progress = TrainingProgress(trainer.length.total_steps, trainer.step)
            self.progress = stack.enter_context(progress)
        self.started, self.num_images = time.perf_counter(), 0

    def stepped(self, output: Output, loss: float) -> None:
        """Count a step, and log it where the config says so; every rank has to call this."""
        trainer = self.trainer
        self.num_images += trainer.config.batch_size
        if self.progress is not None:
            self.progress.stepped(trainer.step)
        total = trainer.length.total_steps
        if trainer.step % trainer.config.log_every and trainer.step != total:
            return
        rate = self.num_images / (time.perf_counter() - self.started)
        metrics = step_metrics(trainer, output, loss)
        self.write({**metrics, "max_steps": total, "images_per_s": rate})
        self.started, self.num_images = time.perf_counter(), 0

    def write(self, metrics: dict[str, float]) -> None:
        """Log and show `metrics`."""
        if self.log is not None and self.progress is not None:
            self.log.write(metrics)
            self.progress.logged(metrics)


def step_metrics(trainer: Trainer, output: Output, loss: float) -> dict[str, float]:
    """Return what is logged of a step; indicators are of the first view, over all processes."""
    metrics = {
        "step": float(trainer.step),
        "loss": loss,
        "lr": float(trainer.optimizer.param_groups[0]["lr"]),
        "regularized": regularized_count(trainer),
    }
    own = {"encoding": output.encoding[0], "embedding": output.embedding[0]}
    features = {name: gather_with_gradient(x.float()) for name, x in own.items()}
    if isinstance(trainer.loss, WhiteningLoss):
        whitened = trainer.loss.whitened(own["embedding"])
        if trainer.config.loss.over == "channels":
            whitened = gather_with_gradient(whitened)
        features["whitened"] = whitened
    return metrics | (centred_indicators(features) if trainer.processes.is_first else {})


def regularized_count(trainer: Trainer) -> float:
    """Return the ridges of all processes so far; every rank has to call this.

    Under batch whitening each counts those of the global batch, else those of its own part.
    """
    counts = trainer.processes.exchange([float(getattr(trainer.loss, "regularized_count", 0))])
    return counts[0][0] if trainer.config.loss.over == "batch" else sum(own for (own,) in counts)
