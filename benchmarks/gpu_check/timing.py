"""Times and kernels of a step on the device, and the project's trainer on views of any source.

V views, N batch, S side.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_check.results import TINY, WORK
from benchmarks.loader import LoaderCase, drawn_images
from pretrain.config.pretrain import PretrainConfig
from pretrain.runtime.device import Views
from pretrain.runtime.distributed import Processes
from pretrain.training import Trainer
from pretrain.views import ShardedViews

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
ENDLESS = 10**9  # steps
Settings = dict[str, Any]

RECIPES: dict[str, Settings] = {
    "imagenet": {
        "model": {
            "arch": "resnet50",
            "projector_layers": 3,
            "projector_hidden": 2048,
            "embedding_dim": 1024,
            "zero_init_residual": True,
        },
        "loss": {"name": "cw-rgp", "sub_batch": 128, "groups": 2},
        "augment": {"size": 224, "blur_probability": 0.5},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "batch_size": 128,
    },
    "tiny-imagenet": {
        "model": {"arch": "resnet18", "stem": "small", "embedding_dim": 64},
        "loss": {"name": "w-mse", "sub_batch": 128},
        "augment": {"size": 64},
        "optimizer": {"name": "adam", "lr": 1e-3},
        "batch_size": 256,
    },
    "cifar": {
        "model": {"arch": "resnet18", "stem": "small-no-pool", "embedding_dim": 64},
        "loss": {"name": "w-mse", "sub_batch": 128},
        "augment": {"size": 32},
        "optimizer": {"name": "adam", "lr": 1e-3},
        "batch_size": 256,
    },
}
TINY_RECIPE: Settings = {
    "model": {"arch": "resnet18", "projector_hidden": 64, "embedding_dim": 64},
    "loss": {"name": "cw-rgp", "sub_batch": 16, "groups": 2},
    "augment": {"size": 32},
    "batch_size": 16,
}


def merged(settings: Settings, changes: Settings) -> Settings:
    """Return `settings` with the changes of each section; a loss is replaced as a whole."""
    content = dict(settings)
    for key, value in changes.items():
        inside = isinstance(value, dict) and key != "loss"
        content[key] = {**content.get(key, {}), **value} if inside else value
    return content


def recipe(title: str, changes: Settings, max_steps: int = ENDLESS) -> PretrainConfig:
    """Return a config of a shipped recipe's shape, over drawn images."""
    common: Settings = {
        "method": "x",
        "data": {"name": "drawn", "root": str(small_images()), "num_workers": 0},
        "augment": {"colours": "on_device", "grayscale": 0.2},
        "optimizer": {"warmup_steps": 0, "schedule": "constant"},
        "num_views": 4,
        "max_steps": max_steps,
        "checkpoint_every": ENDLESS,
        "log_every": ENDLESS,
    }
    content = merged(common, RECIPES[title])
    if TINY:
        content = merged(content, TINY_RECIPE)
        content["model"].pop("stem", None)
    return PretrainConfig.model_validate(merged(content, changes))


def small_images() -> Path:
    """Return a folder with as many images as the largest batch, drawn where they are missing."""
    folder, num_images = WORK / "small", 256
    if len(list(folder.glob("*.jpg"))) < num_images:
        folder.mkdir(parents=True, exist_ok=True)
        drawn_images(LoaderCase("small", (32, 32), True, num_images, 2, augment={}), folder)
    return folder


class TimedViews(ShardedViews):
    """The trainer's views from any source, and when the loop asked for each batch and got it."""

    def __init__(self, source: Iterator[Views]) -> None:
        self.num_images = ENDLESS
        self.source = source  # on the device
        self.asked: list[float] = []
        self.got: list[float] = []

    def batches(self, epoch: int, first_step: int) -> Iterator[Views]:
        """Yield the next batches, whatever the epoch."""
        self.asked.append(time.perf_counter())
        for views in self.source:
            self.got.append(time.perf_counter())
            yield views
            self.asked.append(time.perf_counter())
        raise ValueError("the source has ended before the training")

    def step_ms(self, warm_up: int) -> float:
        """Return the mean milliseconds of a step after `warm_up` steps."""
        return 1e3 * (self.asked[-1] - self.asked[warm_up]) / (len(self.asked) - 1 - warm_up)

    def wait_ms(self, warm_up: int) -> float:
        """Return the mean milliseconds that a step waits for its views."""
        waits = [got - asked for asked, got in zip(self.asked, self.got, strict=True)]
        return 1e3 * statistics.fmean(waits[warm_up:])


@contextmanager
def trainer_of(config: PretrainConfig, views: TimedViews) -> Iterator[Trainer]:
    """Give the project's trainer in a folder of its own, on `views` in the place of its images."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder), Processes(DEVICE))
        trainer.views = views
        yield trainer


def synchronise() -> None:
    """Wait for everything begun on the device."""
    if ON_GPU:
        torch.cuda.synchronize()


def milliseconds(step: Callable[[], object], rounds: int, warm_up: int = 3) -> float:
    """Return the median over single calls, each with a wait for the device."""
    times = []
    for number in range(rounds + warm_up):
        synchronise()
        begin = time.perf_counter()
        step()
        synchronise()
        if number >= warm_up:
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def profiled(step: Callable[[], object], rounds: int = 3, top: int = 18) -> dict[str, Any]:
    """Return the device's time by kernel, the launches, and its share of the wall time."""
    if not ON_GPU:
        return {"skipped": "needs CUDA"}
    step()
    synchronise()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, acc_events=True) as profiler:
        begin = time.perf_counter()
        for _ in range(rounds):
            step()
        synchronise()
        wall_us = 1e6 * (time.perf_counter() - begin)
    kernels: dict[str, list[float]] = {}
    for event in profiler.events() or ():
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False):
            kernels.setdefault(event.name[:90], []).append(event.time_range.elapsed_us())
    busy_us = sum(map(sum, kernels.values()))
    ranked = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:top]
    return {
        "wall ms (profiler on)": wall_us / 1e3 / rounds,
        "device ms": busy_us / 1e3 / rounds,
        "kernels and copies": sum(map(len, kernels.values())) / rounds,
        "device busy": f"{busy_us / wall_us:.0%}",
        "by kernel, ms (number)": {
            name: f"{sum(us) / 1e3 / rounds:.2f} ({len(us) / rounds:.0f})" for name, us in ranked
        },
    }


def free_memory() -> None:
    """Give cached memory back and begin to watch the peak anew."""
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> dict[str, float]:
    """Return the most memory that tensors had on the GPU, as an entry of a row."""
    return {"peak GB": torch.cuda.max_memory_allocated() / 1e9} if ON_GPU else {}
