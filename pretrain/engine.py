"""The training loop: resumes at the step where it stopped, stops cleanly when asked.

V views, N images, D embedding dimensions.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from pretrain.augment import build_view
from pretrain.checkpoint import LAST, load_state, save_atomically
from pretrain.config import OptimizerConfig, PretrainConfig
from pretrain.data import ViewsDataset, derived_seed, epoch_order, list_images
from pretrain.indicators import centred_indicators
from pretrain.losses import build_loss
from pretrain.models import SelfSupervisedModel
from pretrain.schedule import lr_factor
from pretrain.whitening_loss import WhiteningLoss

METRICS = "metrics.jsonl"
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: saved, to be started again
logger = logging.getLogger(__name__)


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimiser; its learning rate is set anew before every step."""
    parameters = list(model.parameters())
    if config.name == "adam":
        return torch.optim.Adam(parameters, lr=0.0, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay
    )


def too_few_images(config: PretrainConfig, num_images: int) -> str | None:
    """Return why the images do not fill a batch, or None."""
    if num_images >= config.batch_size:
        return None
    return (
        f"{config.data.root}: {num_images} images are less than one batch of {config.batch_size}; "
        "lower batch_size or add images"
    )


class Trainer:
    """State of one run, and the loop over it."""

    def __init__(self, config: PretrainConfig, output_dir: Path) -> None:
        self.config = config
        self.output_dir = output_dir
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        paths = list_images(config.data.root)
        if fault := too_few_images(config, len(paths)):
            raise ValueError(fault)
        self.dataset = ViewsDataset(
            paths, build_view(config.augment), config.num_views, config.seed
        )
        self.steps_per_epoch = len(paths) // config.batch_size
        self.total_steps = config.max_steps or (config.epochs or 0) * self.steps_per_epoch
        torch.manual_seed(derived_seed(config.seed))
        self.model = SelfSupervisedModel(config.model).to(self.device)
        self.loss = build_loss(config.loss).to(self.device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.generator = torch.Generator().manual_seed(derived_seed(config.seed, 2))
        self.step = 0
        self.stop_signal: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal between a checkpoint and the run that resumes from it."""
        return self.config.model_dump(
            mode="json", exclude={"data": {"root", "num_workers"}, "log_every": True,
                                  "checkpoint_every": True}
        )  # fmt: skip

    def save(self) -> None:
        """Write everything a resumed run needs to go on bit by bit."""
        content = {
            "step": self.step,
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "config": self.identity,
        }
        save_atomically(content, self.output_dir / LAST)

    def resume(self) -> None:
        """Take up the last checkpoint in the output folder, if there is one."""
        state = load_state(self.output_dir / LAST)
        if state is None:
            return
        if state.get("config") != self.identity:
            raise ValueError(
                f"{self.output_dir / LAST}: was written by a run with another config; "
                "use another output folder"
            )
        self.model.load_state_dict(state["model"])
        if "loss" in state:
            self.loss.load_state_dict(state["loss"])
        else:
            logger.warning("%s has no state of the loss: ridges count from 0", LAST)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["loss_generator"])
        torch.set_rng_state(state["rng"])
        self.step = state["step"]
        logger.info("resumed at step %d of %d", self.step, self.total_steps)

    def batches(self) -> Iterator[Tensor]:
        """Yield views `[V, N, 3, H, W]` from the current step to the last."""
        size = self.config.batch_size
        while self.step < self.total_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            self.dataset.epoch = epoch
            order = epoch_order(len(self.dataset), self.config.seed, epoch)
            loader = DataLoader(
                self.dataset,
                batch_size=size,
                sampler=order[done * size : self.steps_per_epoch * size],
                num_workers=self.config.data.num_workers,
                pin_memory=self.device.type == "cuda",
            )
            for batch in loader:
                yield batch.to(self.device, non_blocking=True).transpose(0, 1)
                if self.step >= self.total_steps:
                    return

    def train_step(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take one optimiser step; return loss, encoding and embedding, detached."""
        self.model.train()
        config = self.config
        factor = lr_factor(self.step, self.total_steps, config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * config.optimizer.base_lr(config.batch_size)
        encoding, embedding = self.model(views)
        loss = self.loss(embedding, generator=self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), encoding.detach(), embedding.detach()

    def train(self) -> dict[str, float]:
        """Run to the last step and return the final metrics.

        Raises:
            ValueError: the loss is not finite.
            SystemExit: a signal asked to stop; the state is saved, the code is 75.
        """
        self.resume()
        last: dict[str, float] = {}
        with MetricsLog(self.output_dir, self.step) as log, self._stop_on_signals():
            started, images = time.perf_counter(), 0
            for views in self.batches():
                loss, encoding, embedding = self.train_step(views)
                value = float(loss)
                if not math.isfinite(value):
                    raise ValueError(self._divergence(value))
                self.step += 1
                images += self.config.batch_size
                if self.step % self.config.log_every == 0 or self.step == self.total_steps:
                    rate = images / (time.perf_counter() - started)
                    last = self._metrics(value, encoding, embedding)
                    log.write({**last, "max_steps": self.total_steps, "images_per_s": rate})
                    started, images = time.perf_counter(), 0
                if self.stop_signal is not None:
                    self.save()
                    logger.warning("signal %d: saved at step %d", self.stop_signal, self.step)
                    raise SystemExit(EXIT_INTERRUPTED)
                if self.step % self.config.checkpoint_every == 0 or self.step == self.total_steps:
                    self.save()
        return last or last_entry(self.output_dir / METRICS)

    def _metrics(self, loss: float, encoding: Tensor, embedding: Tensor) -> dict[str, float]:
        """Return what is logged; indicators are of the first view, centred over its images."""
        metrics = {
            "step": float(self.step),
            "loss": loss,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "regularized": float(getattr(self.loss, "regularized_count", 0)),
        }
        features = {"encoding": encoding[0], "embedding": embedding[0]}
        if isinstance(self.loss, WhiteningLoss):
            features["whitened"] = self.loss.whitened(embedding[0])
        return metrics | centred_indicators(features)

    def _divergence(self, value: float) -> str:
        lr = self.optimizer.param_groups[0]["lr"]
        kept = self.output_dir / LAST
        state = f"last good state is {kept}" if kept.exists() else "nothing was saved before"
        return (
            f"loss became {value} at step {self.step} of {self.total_steps} with learning rate "
            f"{lr:.3g}; {state}; try a smaller learning rate or a longer warm-up"
        )

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        def request_stop(number: int, frame: object) -> None:
            self.stop_signal = number

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
        before = {number: signal.signal(number, request_stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def last_entry(path: Path) -> dict[str, float]:
    """Return the last entry of a finished run's log, without what only matters on the way."""
    lines = path.read_text(encoding="utf-8").splitlines()
    entry: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return {key: entry[key] for key in entry if key not in ("max_steps", "images_per_s")}


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events; entries after the resumed step are dropped first."""

    def __init__(self, output_dir: Path, resumed_step: int) -> None:
        path = output_dir / METRICS
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["step"] <= resumed_step:
                    kept.append(line)
        path.write_text("".join(kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(output_dir / "tensorboard"), purge_step=resumed_step + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.board.close()

    def write(self, entry: dict[str, float]) -> None:
        """Append one entry and flush it."""
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        step = int(entry["step"])
        for name, value in entry.items():
            if name not in ("step", "max_steps"):
                self.board.add_scalar(name, value, step)
