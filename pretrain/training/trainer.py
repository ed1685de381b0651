"""The training loop: resumes at the step where it stopped, stops cleanly when asked.

V views, N images of this process, D embedding dimensions.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.indicators import centred_indicators
from pretrain.losses import build_loss
from pretrain.methods import build_model
from pretrain.runtime.checkpoint import LAST, save_atomically
from pretrain.runtime.device import HostCopy, Views, image_parts
from pretrain.runtime.distributed import Processes, all_gather_with_grad
from pretrain.runtime.faults import DivergedError
from pretrain.runtime.rng import derived_seed, random_states, restore_random_states, seed_process
from pretrain.runtime.signals import EXIT_INTERRUPTED, StopRequest
from pretrain.training import precision
from pretrain.training.divergence import describe, dump_path
from pretrain.training.memory import memory_estimate
from pretrain.training.metrics import METRICS, PROBED, Report, final_metrics
from pretrain.training.optimizers import build_optimizer
from pretrain.training.resume import state_to_resume
from pretrain.training.schedule import Length, covariance_weight, lr_factor
from pretrain.views import ShardedViews

STEPS_AHEAD = {"cuda": 1}  # launched before the loss of a step is read; 0 on other devices
AfterEpoch = Callable[[int | None, nn.Module, StopRequest], dict[str, float]]
logger = logging.getLogger(__name__)


class Output(NamedTuple):
    """Loss and features of this process's part of a batch, detached."""

    loss: Tensor
    encoding: Tensor  # [V, N, F]
    embedding: Tensor  # [V, N, D]


class Step(NamedTuple):
    """A step whose loss and norm of the gradient are on their way, and what a dump has of it."""

    number: int
    lr: float
    views: Views
    output: Output
    health: HostCopy


class Trainer:
    """State of one run, and the loop over it; every process of the run has one.

    `after_epoch` is called on rank 0 with the number of epochs that are over, the encoder and the
    request to stop, before the state is saved; after the last step with None instead of the number,
    until something is logged of it. What it returns is logged. It may leave the encoder in either
    mode, and what it draws from the global random states is undone. It should return soon once the
    request's `number` is not 0.
    """

    def __init__(
        self,
        config: PretrainConfig,
        output_dir: Path,
        processes: Processes,
        after_epoch: AfterEpoch | None = None,
    ) -> None:
        if faults := precision.machine_faults(config, processes.size, processes.device):
            raise ValueError("; ".join(faults))
        precision.warn_of_slowness(config.compute, processes.device)
        self.config = config
        self.output_dir = output_dir
        self.processes = processes
        self.after_epoch = after_epoch
        self.views = ShardedViews(config, processes)
        self.length = Length.of(config, self.views.num_images)
        torch.manual_seed(derived_seed(config.seed))
        self.model = build_model(config)
        precision.prepare(self.model, config, processes)
        self.loss = build_loss(config.loss).to(processes.device)
        constant_rate = self.model.constant_rate_parameters()
        self.optimizer = build_optimizer(self.model, config.optimizer, constant_rate=constant_rate)
        self.scaler = precision.grad_scaler(config.compute, processes.device)
        parts = (config.seed, 2, processes.rank) if processes.rank else (config.seed, 2)
        self.generator = torch.Generator().manual_seed(derived_seed(*parts))
        seed_process(config.seed, processes.rank)
        self.stop = StopRequest()
        self.step = 0
        self.unread: deque[Step] = deque()
        self.bad = torch.zeros((), device=processes.device)  # 1 from the first bad step on

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
        config, main, total = self.config, self.processes.is_main, self.length.total_steps
        with self.stop:
            identity, num_images = config.identity(), self.views.num_images
            probe = None if config.probe is None else config.probe.measured_by()
            state = state_to_resume(self.output_dir, self.processes, identity, num_images, probe)
            if state is not None:
                self.load_state_dict(state)
                if main:
                    logger.info("resumed at step %d of %d", self.step, total)
            if main:
                logger.info("%s", memory_estimate(config, self.processes.size))
            parallel = precision.parallel(self.model, self.processes)
            with Report(config, self.output_dir, self.step, total, main=main) as report:
                if state is not None and self.step_in_epoch == 0 and self.step < total:
                    self._leave_if(self._probe_epoch(report, resumed=True))
                for views in self._batches():
                    self._set_rates()
                    output = self.gradients(parallel, views)
                    self._watch(output, views)
                    self.update()
                    self.model.after_step()
                    self.step += 1
                    loss, signal = self._agree(self.stop.number)
                    report.stepped(self.step, partial(self.metrics, output, loss))
                    self._after_step(report, signal)
                self._end_training(report)
        return final_metrics(self.output_dir / METRICS) if main else {}

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to go on bit by bit; every rank has to call this.

        The schedule has no state: it follows from the step. `ranks` is whole on rank 0 alone.
        """
        rank_state = {
            "random": random_states(),
            "loss_generator": self.generator.get_state(),
            "loss": {name: value.cpu() for name, value in self.loss.state_dict().items()},
        }
        return {
            "step": self.step,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "num_images": self.views.num_images,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ranks": self.processes.gather(rank_state),
            "config": self.config.identity(),
            "probe": None if self.config.probe is None else self.config.probe.measured_by(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned on rank 0."""
        self.model.load_state_dict(state["model"])
        for group in state["optimizer"]["param_groups"]:
            if "fused" in group:  # of the device that wrote it
                group["fused"] = self.optimizer.defaults["fused"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        rank_state = state["ranks"][self.processes.rank]
        self.loss.load_state_dict(rank_state["loss"])
        self.generator.set_state(rank_state["loss_generator"])
        restore_random_states(rank_state["random"])
        self.step = state["step"]

    def save(self, name: str = LAST) -> None:
        """Write the state of all ranks under `name`; every rank has to call this."""
        state = self.state_dict()
        if self.processes.is_main:
            save_atomically(state, self.output_dir / name)

    def _batches(self) -> Iterator[Views]:
        """Yield views from the current step to the last."""
        while self.step < self.length.total_steps:
            for views in self.views.batches(self.epoch, self.step_in_epoch):
                yield views
                if self.step >= self.length.total_steps:
                    return

    def _set_rates(self) -> None:
        config = self.config
        factor = lr_factor(self.step, self.length, config.optimizer)
        for group in self.optimizer.param_groups:
            peak = group.get("rate", 1.0) * config.optimizer.base_lr(config.batch_size)
            group["lr"] = peak if group.get("constant_rate") else factor * peak
        self.loss.covariance_weight = covariance_weight(self.step, self.length, config)
        self.model.set_progress(self.step / self.length.total_steps)

    def gradients(self, parallel: nn.Module, views: Views) -> Output:
        """Leave the gradients of the global batch in the parameters, fp16's scaled."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        settings, device = self.config.compute, self.processes.device
        parts = image_parts(views, settings.accumulate)
        outputs = []
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            with nullcontext() if last else precision.without_averaging(parallel):
                with precision.autocast(settings, device):
                    encoding, embedding, beside = parallel(part)
                loss = self.loss(embedding, generator=self.generator, **beside) / len(parts)
                self.scaler.scale(loss).backward()
            outputs.append(Output(loss.detach(), encoding.detach(), embedding.detach()))
        if len(outputs) == 1:
            return outputs[0]
        losses, encodings, embeddings = zip(*outputs, strict=True)
        return Output(torch.stack(losses).sum(), torch.cat(encodings, 1), torch.cat(embeddings, 1))

    def update(self) -> None:
        """Take the optimiser's step; none from a step on whose loss or gradient is not finite.

        Under fp16 not if a scaled gradient overflowed. A GPU knows by itself: nothing is read.
        """
        if self.bad.device.type == "cpu" and bool(self.bad):
            return
        self.scaler.unscale_(self.optimizer)
        if self.scaler.is_enabled():
            for overflowed in self.scaler._found_inf_per_device(self.optimizer).values():
                overflowed.copy_(torch.maximum(overflowed, self.bad))
        elif self.bad.device.type == "cuda":
            vars(self.optimizer)["found_inf"] = self.bad  # heeded by LARS and by fused kernels
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _watch(self, output: Output, views: Views) -> None:
        """Begin to read the loss and the norm of the gradient.

        fp16's gradients may overflow: its scaler leaves such steps out and halves its factor, which
        falls on and on where the gradients themselves are not finite.
        """
        if self.scaler.is_enabled():
            scale = self.scaler.scale(torch.ones_like(output.loss))
            norm = torch.where(scale < precision.LEAST_SCALE, math.inf, 0.0).to(scale.dtype)
        else:
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads).to(output.loss.dtype)
        health = torch.stack([output.loss, norm])
        self.bad = torch.maximum(self.bad, (~health.isfinite()).any().to(self.bad.dtype))
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.unread.append(Step(self.step, lr, views, output, HostCopy(health)))

    def _agree(self, signal: int) -> tuple[float, int]:
        """Return the mean loss over all processes, and a signal that any of them has got.

        A GPU computes the next step while the last one is read, so that the loss is of the step
        before, or NaN after the first; of this step where it is logged or saved.
        """
        at_once = self.config.logs(self.step) or self.step % self.config.checkpoint_every == 0
        at_once |= self.step_in_epoch == 0 or self.step == self.length.total_steps
        loss, agreed = math.nan, 0
        ahead = STEPS_AHEAD.get(self.processes.device.type, 0)
        while len(self.unread) > (0 if at_once or agreed else ahead):
            step = self.unread.popleft()
            rows = self.processes.all_gather([*step.health.tolist(), float(signal)])
            losses, norms, signals = (list(column) for column in zip(*rows, strict=True))
            if not all(map(math.isfinite, losses + norms)):
                self._stop_diverged(step, losses, norms)
            loss, agreed = sum(losses) / len(losses), max(agreed, int(max(signals)))
        return loss, agreed

    def _stop_diverged(self, step: Step, losses: list[float], norms: list[float]) -> None:
        rank = self.processes.rank
        content: dict[str, Any] = {
            "step": step.number,
            "lr": step.lr,
            "losses": losses,
            "gradient_norms": norms,
            "views": step.views,
            **step.output._asdict(),
            "config": self.config.identity(),
        }
        if rank == 0:
            content["model"] = self.model.state_dict()
        save_atomically(content, dump_path(self.output_dir, rank))
        self.processes.barrier()
        total, folder = self.length.total_steps, self.output_dir
        raise DivergedError(describe(losses, norms, step.number, total, step.lr, folder))

    def _after_step(self, report: Report, signal: int) -> None:
        config, at_end = self.config, self.step == self.length.total_steps
        self.stop.number = signal or self.stop.number
        if self.step_in_epoch == 0:
            signal = signal if at_end else self._probe_epoch(report)
            if config.keep_every_epochs and self.epoch % config.keep_every_epochs == 0:
                self.save(f"epoch_{self.epoch:04d}.pth")
        if signal or at_end or self.step % config.checkpoint_every == 0:
            self.save()
        if not at_end:
            self._leave_if(signal)

    def _leave_if(self, signal: int) -> None:
        if signal:
            self.processes.barrier()  # none ends before rank 0 has saved
            self._leave(signal)

    def _leave(self, signal: int) -> None:
        if self.processes.is_main:
            logger.warning("signal %d: saved at step %d", signal, self.step)
        raise SystemExit(EXIT_INTERRUPTED)

    def _probe_epoch(self, report: Report, *, resumed: bool = False) -> int:
        """Call `after_epoch` and return a signal that any process has got meanwhile.

        That ends the run here, at the encoder that a probe was interrupted at. A run that is
        resumed at the end of an epoch calls it unless the log has what it measured.
        """
        if not (resumed and self.processes.is_main and self._is_probed()):
            self._call_after_epoch(report, self.epoch)
        # here and not in nccl, which gives up sooner, the others wait for rank 0
        signals = self.processes.all_gather([float(self.stop.number)])
        return int(max(number for (number,) in signals))

    def _is_probed(self) -> bool:
        """Return whether the log has what a probe measured at the current step."""
        logged = final_metrics(self.output_dir / METRICS)
        return PROBED in logged and logged["step"] == self.step

    def _end_training(self, report: Report) -> None:
        """Call `after_epoch` of the finished encoder, whose state is saved.

        Asked to stop meanwhile the run is not over: resumed, it ends with this call.
        """
        if self.after_epoch is None:
            return
        done, main = True, self.processes.is_main
        if main and not self._is_probed():
            done = self._call_after_epoch(report, None)
        of_main = self.processes.all_gather([float(done), float(self.stop.number)])[0]
        if not of_main[0] and of_main[1]:
            self._leave(int(of_main[1]))

    def _call_after_epoch(self, report: Report, epoch: int | None) -> bool:
        """Return whether anything was measured, and log it; on rank 0 alone."""
        if self.after_epoch is None or not self.processes.is_main:
            return False
        devices = [self.processes.device] if self.processes.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            metrics = self.after_epoch(epoch, self.model.encoder, self.stop)
        if metrics:
            report.write({"step": self.step, "max_steps": self.length.total_steps, **metrics})
        return bool(metrics)

    def metrics(self, output: Output, loss: float) -> dict[str, float]:
        """Return what is logged of a step; indicators are of the first view, over all processes.

        They are measured at the last step and where the config says so.
        """
        metrics = {
            "step": self.step,
            "loss": loss,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "regularized": self.regularized_count(),
        }
        if not self.config.measures(self.step) and self.step != self.length.total_steps:
            return metrics
        first_view = {"encoding": output.encoding[0], "embedding": output.embedding[0]}
        features = {name: all_gather_with_grad(x.float()) for name, x in first_view.items()}
        whitened = self.loss.whitened(first_view["embedding"])
        if whitened is not None:
            features["whitened"] = whitened
        return metrics | (centred_indicators(features) if self.processes.is_main else {})

    def regularized_count(self) -> int:
        """Return the ridges of all processes so far; every rank has to call this.

        Under batch whitening each counts those of the global batch, else those of its own part.
        """
        counts = self.processes.all_gather([float(self.loss.regularized_count)])
        return int(counts[0][0] if self.loss.counts_whole_batch else sum(n for (n,) in counts))
