"""The time of a training step by part: data, encoder, projector, loss, optimiser.

V views, N images, S side.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import best_device, device_name, wait_for
from benchmarks.loader import LoaderCase, drawn_images, loader_config
from benchmarks.rows import Table, print_rows
from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import Images
from pretrain.losses import build_loss
from pretrain.models import SelfSupervisedModel
from pretrain.training.optimizers import build_optimizer
from pretrain.views import ViewLoader

PARTS = ("data", "encoder", "projector", "loss", "optimizer")
WARM_UP_STEPS = 1


@dataclass(frozen=True)
class StepCase:
    """A recipe cut down to what one device of a kind steps through in seconds."""

    title: str
    images: LoaderCase
    batch: int
    config: dict[str, Any]


def _case(
    size: int, batch: int, arch: str, jpeg: tuple[int, int], loss: dict[str, Any]
) -> StepCase:
    title = f"{loss['name']}, {arch}, {batch} x 4 views of {size} px"
    augment = {"size": size, "grayscale": 0.1, "colours": "on_device"}
    images = LoaderCase(title, jpeg, jpeg=True, num_images=96, num_views=4, augment=augment)
    dim = 64 if loss["name"] == "w-mse" else 512
    return StepCase(title, images, batch, {"arch": arch, "embedding_dim": dim, "loss": loss})


W_MSE = {"name": "w-mse", "sub_batch": 128}
CW_RGP = {"name": "cw-rgp", "sub_batch": 64, "groups": 4}
CPU_CASES = (
    _case(32, 128, "resnet18", (64, 64), W_MSE),
    _case(32, 128, "resnet18", (64, 64), CW_RGP),
)
GPU_CASES = (
    _case(64, 256, "resnet18", (64, 64), W_MSE),
    _case(224, 128, "resnet50", (500, 375), CW_RGP),
)


def benchmark_step(*, rounds: int = 3, threads: int | None = None, workers: int = 0) -> list[Table]:
    """Print the milliseconds of each part of a step, and the whole step's views per second.

    `data` is the wait for the next batch and the colours; the other parts count their forward and
    their backward pass.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = best_device()
    name = device_name(device)

    def rows() -> Iterator[list[Any]]:
        for case in GPU_CASES if device.type == "cuda" else CPU_CASES:
            ms = step_ms(case, rounds, workers, device)
            whole = sum(ms.values())
            rate = case.batch * case.images.num_views / whole * 1e3
            yield [case.title, *ms.values(), whole, rate]

    table = print_rows(
        f"A training step, ms, float32, {name}, {torch.get_num_threads()} threads, "
        f"{workers} workers, load {os.getloadavg()[0]:.1f}, median of {rounds}",
        ("case", *(f"{part}:.1f" for part in PARTS), "whole:.1f", "views/s:,.0f"),
        rows(),
        device=name,
    )
    return [table]


def step_ms(case: StepCase, rounds: int, workers: int, device: torch.device) -> dict[str, float]:
    """Return the median milliseconds of each part over `rounds` steps after one to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        config = step_config(case, workers, Path(folder))
        steps = _Steps(config, drawn_images(case.images, Path(folder)), device)
        for _ in range(rounds + WARM_UP_STEPS):
            steps.take()
    return {part: 1e3 * statistics.median(steps.seconds[part][WARM_UP_STEPS:]) for part in PARTS}


def step_config(case: StepCase, workers: int, root: Path) -> PretrainConfig:
    """Return the whole config of a case."""
    names = ("arch", "embedding_dim")
    return loader_config(
        case.images,
        "on_device",
        workers,
        root,
        method=case.config["loss"]["name"],
        model={name: case.config[name] for name in names},
        loss=case.config["loss"],
        optimizer={"lr": 1e-3},
        batch_size=case.batch,
    )


class _Steps:
    """Training steps cut at the encoding and at the embedding, so that each part is timed alone."""

    def __init__(self, config: PretrainConfig, images: Images, device: torch.device) -> None:
        self.device = device
        self.model = SelfSupervisedModel(config.model).to(device).train()
        self.loss = build_loss(config.loss).to(device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.batches = self._endless(ViewLoader(config, images, device), len(images), config)
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}

    def take(self) -> None:
        """Take one step and keep how long each part took."""
        spent = dict.fromkeys(PARTS, 0.0)
        with self._timed(spent, "data"):
            views = next(self.batches)
        self.optimizer.zero_grad(set_to_none=True)
        with self._timed(spent, "encoder"):
            encoding = torch.stack([self.model.encoder(view) for view in views])
        cut_encoding = encoding.detach().requires_grad_()
        with self._timed(spent, "projector"):
            embedding = self.model.projector(cut_encoding.flatten(0, 1))
        cut_embedding = embedding.detach().requires_grad_()
        with self._timed(spent, "loss"):
            loss = self.loss(cut_embedding.unflatten(0, views.shape[:2]))
            torch.autograd.backward(loss)
        with self._timed(spent, "projector"):
            torch.autograd.backward(embedding, cut_embedding.grad)
        with self._timed(spent, "encoder"):
            torch.autograd.backward(encoding, cut_encoding.grad)
        with self._timed(spent, "optimizer"):
            self.optimizer.step()
        for part, seconds in spent.items():
            self.seconds[part].append(seconds)

    @contextmanager
    def _timed(self, spent: dict[str, float], part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        wait_for(self.device)
        spent[part] += time.perf_counter() - begin

    @staticmethod
    def _endless(loader: ViewLoader, num_images: int, config: PretrainConfig) -> Iterator[Tensor]:
        size = config.batch_size
        batch = [index % num_images for index in range(size)]
        epoch = 0
        while True:
            yield from loader.batches(epoch, [batch] * 16)
            epoch += 1
