"""The time of a training step by part: data, encoder, projector, loss, optimiser.

V views, N images, S side.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.device import best_device, device_name, peak_mb, tensors_mb, wait_for
from benchmarks.loader import LoaderCase, drawn_images, loader_config
from benchmarks.rows import Table, print_rows
from pipeline.config.yaml_files import load_yaml, validated
from pretrain.config.methods import LOSS_NAMES
from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import build_loss
from pretrain.methods import build_model
from pretrain.runtime.device import Views
from pretrain.runtime.distributed import Processes
from pretrain.training import precision as computing
from pretrain.training.optimizers import build_optimizer
from pretrain.views import ViewLoader

PARTS = ("encoder", "projector", "loss", "optimizer")
COLUMNS = (
    "case", "data:.1f", *(f"{part}:.1f" for part in PARTS), "whole:.1f", "views/s:,.0f",
    "peak MB:,.0f",
)  # fmt: skip
WARM_UP = {"cpu": 1, "cuda": 3}  # steps
Row = dict[str, float | None]
Cut = tuple[Tensor, Tensor]  # as it was made, and a copy of it that begins a graph of its own


@dataclass(frozen=True)
class StepCase:
    """A recipe cut down to what one device of a kind steps through in seconds."""

    title: str
    images: LoaderCase
    batch: int
    config: dict[str, Any]


def _case(
    size: int,
    batch: int,
    arch: str,
    jpeg: tuple[int, int],
    loss: dict[str, Any],
    num_views: int = 4,
) -> StepCase:
    title = f"{loss['name']}, {arch}, {batch} x {num_views} views of {size} px"
    augment = {"size": size, "grayscale": 0.1, "colours": "on_device"}
    images = LoaderCase(title, jpeg, jpeg=True, num_images=96, num_views=num_views, augment=augment)
    dim = 512 if loss["name"] == "cw-rgp" else 64
    return StepCase(
        title, images, batch, {"model": {"arch": arch, "embedding_dim": dim}, "loss": loss}
    )


def recipe_case(path: Path, batch_size: int | None = None) -> StepCase:
    """Return the case of a recipe of its batch or another; data and `compute` are not taken.

    Raises:
        ValueError: the file is no pretraining config, or no such batch can be.
    """
    content = load_yaml(path)
    if batch_size is not None:
        content["batch_size"] = batch_size
    config = validated(PretrainConfig, content, str(path))
    size, N, V = config.augment.size, config.batch_size, config.num_views
    title = f"{path.stem}, {config.model.arch}, {N} x {V} views of {size} px"
    drawn = (64, 64) if size <= 64 else (500, 375)
    augment = content.get("augment", {})
    images = LoaderCase(title, drawn, jpeg=True, num_images=96, num_views=V, augment=augment)
    changes: dict[str, Any] = {"optimizer": {"name": config.optimizer.name, "lr": 1e-3}}
    changes |= {key: content[key] for key in ("method", "model", "loss") if key in content}
    return StepCase(title, images, N, changes)


W_MSE = {"name": "w-mse", "sub_batch": 128}
ZCA = {"name": "whitening", "over": "batch", "method": "zca"}
CW_RGP = {"name": "cw-rgp", "sub_batch": 64, "groups": 4}
WHITENING = {"w-mse": W_MSE, "cw-rgp": CW_RGP, "whitening": {**W_MSE, **ZCA}}
CPU_CASES = (
    _case(32, 128, "resnet18", (64, 64), W_MSE),
    _case(32, 128, "resnet18", (64, 64), CW_RGP),
)
GPU_CASES = (
    _case(64, 256, "resnet18", (64, 64), W_MSE),
    _case(224, 128, "resnet50", (500, 375), CW_RGP),
)
SMALLEST = {"cpu": (32, 128, "resnet18", (64, 64)), "cuda": (64, 256, "resnet18", (64, 64))}


def benchmark_step(  # noqa: PLR0913 - the options of one command
    *,
    recipe: str | None = None,
    batch_size: int | None = None,
    rounds: int = 3,
    threads: int | None = None,
    workers: int = 0,
    precision: str = "float32",
    channels_last: bool = False,
    compile: bool = False,
) -> list[Table]:
    """Print a step's milliseconds, views per second and peak memory, on views that are there.

    A second row has the same step fed by the loader, once what it had ready is used up: `data` is
    the wait for a batch. Parts count their forward and their backward pass; the projector's has
    what a method adds. `recipe` is a pretraining config that takes the place of the cases.

    Raises:
        ValueError: this machine has not the precision, or the recipe is none.
    """
    device = best_device()
    cases: tuple[StepCase, ...] = GPU_CASES if device.type == "cuda" else CPU_CASES
    if recipe is not None:
        cases = (recipe_case(Path(recipe), batch_size),)
    elif batch_size is not None:
        raise ValueError("--batch-size has no effect without --recipe; name one")
    compute = {"precision": precision, "channels_last": channels_last, "compile": compile}
    return _table(cases, rounds, threads, workers, compute)


def benchmark_methods(
    *, rounds: int = 3, threads: int | None = None, precision: str = "float32"
) -> list[Table]:
    """Print what `benchmark_step` does of every loss by its name, on two views of small images.

    Raises:
        ValueError: this machine has not the precision.
    """
    smallest = SMALLEST[best_device().type]
    cases = [
        _case(*smallest, WHITENING.get(name, {"name": name}), num_views=2) for name in LOSS_NAMES
    ]
    compute = {"precision": precision, "channels_last": False, "compile": False}
    return _table(cases, rounds, threads, 0, compute)


def _table(
    cases: Sequence[StepCase],
    rounds: int,
    threads: int | None,
    workers: int,
    compute: dict[str, Any],
) -> list[Table]:
    if threads is not None:
        torch.set_num_threads(threads)
    device = best_device()
    config = step_config(cases[0], 0, Path(), compute)
    if faults := computing.machine_faults(config, 1, device):
        raise ValueError("; ".join(faults))
    computing.warn_of_slowness(config.compute, device)

    def rows() -> Iterator[list[Any]]:
        names = [column.partition(":")[0] for column in COLUMNS[1:]]
        for case in cases:
            for title, row in step_rows(case, rounds, workers, device, compute).items():
                yield [title, *(row.get(name) for name in names)]

    name, ways = device_name(device), [key for key in ("channels_last", "compile") if compute[key]]
    table = print_rows(
        f"A training step, ms, {', '.join([compute['precision'], *ways, name])}, "
        f"{torch.get_num_threads()} threads, {workers} workers, load {os.getloadavg()[0]:.1f}, "
        f"{rounds} rounds",
        COLUMNS,
        rows(),
        device=name,
        threads=torch.get_num_threads(),
    )
    return [table]


def step_rows(
    case: StepCase, rounds: int, workers: int, device: torch.device, compute: dict[str, Any]
) -> dict[str, Row]:
    """Return the row of a case on views that are on the device, and that of the loader's views."""
    with tempfile.TemporaryDirectory() as folder:
        config = step_config(case, workers, Path(folder), compute)
        images = drawn_images(case.images, Path(folder))
        ready = workers * config.data.prefetch + 1  # one more is copied ahead
        warm_up = WARM_UP[device.type] + ready
        timed = rounds * max(1, workers)  # batches come by as many as there are workers
        batch = [index % len(images) for index in range(case.batch)]
        batches = [batch] * (1 + warm_up + timed)  # one epoch: at its end all wait
        loaded = ViewLoader(config, images, device).batches(0, batches)
        steps = Steps(config, device)
        num_views = case.batch * config.num_views
        return {
            case.title: _steady(steps, next(loaded), rounds, num_views),
            f"{case.title}, loaded": _loaded(steps, loaded, (warm_up, timed), num_views),
        }


def _steady(steps: Steps, views: Views, rounds: int, num_views: int) -> Row:
    for _ in range(WARM_UP[steps.device.type]):
        steps.take(views)
        steps.take_apart(views)
    apart = [steps.take_apart(views) for _ in range(rounds)]
    whole = statistics.median(steps.take(views) for _ in range(rounds))
    there = tensors_mb(steps.model, steps.optimizer) + sum(view.nbytes for view in views) / 1e6
    return {
        **{part: 1e3 * statistics.median(seconds[part] for seconds in apart) for part in PARTS},
        "whole": 1e3 * whole,
        "views/s": num_views / whole,
        "peak MB": there + peak_mb(lambda: steps.take(views), steps.device),
    }


def _loaded(steps: Steps, views: Iterator[Views], numbers: tuple[int, int], num_views: int) -> Row:
    """Return the mean over the second number of steps, after as many as the first to warm up."""
    warm_up, timed = numbers
    for _ in range(warm_up):
        steps.take(next(views))
    waits, begin = 0.0, time.perf_counter()
    for _ in range(timed):
        asked = time.perf_counter()
        batch = next(views)
        waits += time.perf_counter() - asked
        steps.take(batch)
    whole = (time.perf_counter() - begin) / timed
    return {"data": 1e3 * waits / timed, "whole": 1e3 * whole, "views/s": num_views / whole}


def step_config(
    case: StepCase, workers: int, root: Path, compute: dict[str, Any]
) -> PretrainConfig:
    """Return the whole config of a case."""
    defaults = {"method": case.config["loss"]["name"], "optimizer": {"lr": 1e-3}}
    changes = {**defaults, **case.config, "batch_size": case.batch, "compute": compute}
    return loader_config(case.images, "on_device", workers, root, **changes)


class Steps:
    """Training steps computed as the config says, whole or in parts that are timed alone."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.device, self.compute = device, config.compute
        self.model = build_model(config).train()
        computing.prepare(self.model, config, Processes(device))
        self.loss = build_loss(config.loss).to(device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.scaler = computing.grad_scaler(config.compute, device)

    def take(self, views: Views) -> float:
        """Take a step; return its seconds."""
        spent = {"step": 0.0}
        with self._timed(spent, "step"):
            self.optimizer.zero_grad(set_to_none=True)
            with computing.autocast(self.compute, self.device):
                _, embedding, beside = self.model(views)
            self.scaler.scale(self.loss(embedding, **beside)).backward()
            self._update()
        return spent["step"]

    def take_apart(self, views: Views) -> dict[str, float]:
        """Take a step that is cut at the encodings and before the loss; return seconds by part.

        What a method adds to the projector counts with it: a predictor, a queue.
        """
        spent = dict.fromkeys(PARTS, 0.0)
        encodings: list[Cut] = []
        self.optimizer.zero_grad(set_to_none=True)
        with self._timed(spent, "projector"), self._cut_encodings(spent, encodings):
            _, embedding, beside = self.model(views)
        spent["projector"] -= spent["encoder"]
        made = {"": embedding, **beside}
        cut = {key: x.detach().requires_grad_(x.requires_grad) for key, x in made.items()}
        with self._timed(spent, "loss"):
            loss = self.loss(cut[""], **{key: cut[key] for key in beside})
            self.scaler.scale(loss).backward()
        with self._timed(spent, "projector"):
            _go_back([(made[key], x) for key, x in cut.items()])
        with self._timed(spent, "encoder"):
            _go_back(encodings)
        with self._timed(spent, "optimizer"):
            self._update()
        return spent

    @contextmanager
    def _cut_encodings(self, spent: dict[str, float], encodings: list[Cut]) -> Iterator[None]:
        """Run a forward pass that stops the gradient behind each call of an encoder."""
        embed = self.model.embed

        def encode(encoder: nn.Module, images: Tensor) -> Tensor:
            with self._timed(spent, "encoder"):
                made: Tensor = encoder(images)
            encodings.append((made, made.detach().requires_grad_(made.requires_grad)))
            return encodings[-1][1]

        def cut(encoder: nn.Module, *rest: Any) -> tuple[Tensor, Tensor]:
            return embed(partial(encode, encoder), *rest)  # type: ignore[arg-type]

        vars(self.model)["embed"] = cut
        try:
            with computing.autocast(self.compute, self.device):
                yield
        finally:
            del vars(self.model)["embed"]

    def _update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.after_step()

    @contextmanager
    def _timed(self, spent: dict[str, float], part: str) -> Iterator[None]:
        wait_for(self.device)
        begin = time.perf_counter()
        yield
        wait_for(self.device)
        spent[part] += time.perf_counter() - begin


def _go_back(parts: list[Cut]) -> None:
    """Run the backward pass of what was cut, from the gradients of the copies."""
    reached = [(made, copied.grad) for made, copied in parts if copied.grad is not None]
    torch.autograd.backward([made for made, _ in reached], [grad for _, grad in reached])
