"""Loader, trainer and resumption on the device, in every variant, on the digits."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.commands import json_lines
from benchmarks.gpu_check.numerics import CPU, relative
from benchmarks.gpu_check.results import TINY
from benchmarks.gpu_check.timing import DEVICE, ON_GPU, Settings, TimedViews, merged
from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import open_images
from pretrain.runtime.device import Views
from pretrain.runtime.distributed import Processes
from pretrain.runtime.tf32 import tf32_faults
from pretrain.training import Trainer
from pretrain.training.metrics import METRICS
from pretrain.views import ViewLoader

STEPS = 2 if TINY else 4
DIGITS: Settings = {
    "method": "cw-rgp",
    "data": {"name": "digits", "root": "datasets/digits/unlabeled"},
    "augment": {"size": 32, "colours": "on_device"},
    "model": {"arch": "resnet18", "projector_hidden": 256, "embedding_dim": 256},
    "loss": {"name": "cw-rgp", "sub_batch": 32, "groups": 2},
    "optimizer": {"lr": 1e-3, "warmup_steps": 0, "schedule": "constant"},
    "num_views": 2,
    "batch_size": 64,
    "max_steps": STEPS,
    "checkpoint_every": 2,
    "log_every": 1,
}
VARIANTS: dict[str, Settings] = {
    "float32": {},
    "tf32": {"compute": {"precision": "tf32"}},
    "bf16": {"compute": {"precision": "bf16"}},
    "fp16": {"compute": {"precision": "fp16"}},
    "channels_last": {"compute": {"channels_last": True}},
    "accumulate": {"compute": {"accumulate": 2}},
    "all-views": {"model": {"encoder_batchnorm": "all-views"}},
    "lars": {"optimizer": {"name": "lars", "lr": 1e-3}},
    "sgd": {"optimizer": {"name": "sgd", "lr": 1e-3}},
    "noise and blur": {"augment": {"noise_std": 0.05, "blur_probability": 0.5}},
    "views of two sizes": {
        "augment": {"views": [{"blur_probability": 1.0}, {"size": 24, "solarize": 0.2}]}
    },
    "w-mse": {
        "method": "w-mse",
        "loss": {"name": "w-mse", "sub_batch": 64},
        "model": {"embedding_dim": 32},
    },
    "probed": {
        "data": {"root": "datasets/digits/crops/val/3"},
        "max_steps": 2,
        "probe": {
            "every_epochs": 2,
            "max_images": 400,
            "data": {"name": "d", "root": "datasets/digits/crops", "format": "imagefolder"},
        },
    },
}
LEFT_OUT = {"fp16", "bf16"} if not ON_GPU else set()  # a CPU refuses fp16 and emulates bf16
LEFT_OUT |= {"tf32"} if tf32_faults("compute.precision", "tf32", DEVICE) else set()
LEFT_OUT |= {"channels_last", "sgd", "accumulate"} if TINY else set()


def digits_config(changes: Settings) -> PretrainConfig:
    """Return the config of some steps on the digits."""
    return PretrainConfig.model_validate(merged(DIGITS, changes))


def trained(
    changes: Settings, folder: Path, device: torch.device = DEVICE
) -> tuple[list[float], Tensor]:
    """Return the loss of each step, and all weights after the last."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(digits_config(changes), folder, Processes(device))
    trainer.train()
    values = [float(line["loss"]) for line in json_lines(folder / METRICS) if "loss" in line]
    return values, torch.cat([p.detach().flatten().cpu() for p in trainer.model.parameters()])


def loader() -> dict[str, Any]:
    """Workers, pinned memory and the way to the device, for all three places of the colours."""
    views: dict[str, Tensor] = {}
    for place in ("in_loader", "on_device", "by_view"):
        config = digits_config(
            {
                "data": {"num_workers": 2},
                "augment": {"colours": place, "blur_probability": 0.5},
                "loss": {"name": "none"},
                "batch_size": 32,
            }
        )
        source = ViewLoader(config, open_images(config.data), DEVICE)
        batches = list(source.batches(0, [list(range(32)), list(range(32, 64))]))
        views[place] = torch.stack([view for batch in batches for view in batch]).cpu()
        assert views[place].shape == (4, 32, 3, 32, 32)
        assert batches[0][0].device.type == DEVICE.type
    difference = (views["in_loader"] - views["on_device"]).abs()
    share = float((difference > 5e-3).float().mean())
    assert share < 1e-3, share
    return {"on_device against in_loader": float(difference.max()), "share above 0.005": share}


def trainer_variants() -> dict[str, Any]:
    """Steps of the real trainer in every precision, optimiser and layout, with their losses."""
    with tempfile.TemporaryDirectory() as folder:
        losses = {"cpu": trained({}, Path(folder) / "cpu", CPU)[0]}
        for title, changes in VARIANTS.items():
            if title not in LEFT_OUT:
                losses[title], _ = trained(changes, Path(folder) / title)
                assert all(0 < value < 4 for value in losses[title]), (title, losses[title])
    assert abs(losses["float32"][0] - losses["cpu"][0]) < 0.02 * losses["cpu"][0], losses
    return {title: [round(value, 5) for value in values] for title, values in losses.items()}


def resume() -> dict[str, Any]:
    """Half the steps, a new trainer that takes up the state, the rest: against all in one go.

    On a GPU two whole runs differ, too; without Adam's state weights would be off by a fiftieth.
    """
    with tempfile.TemporaryDirectory() as folder:
        first, second = (trained({}, Path(folder) / name)[1] for name in ("first", "second"))
        stopped = Path(folder) / "stopped"
        trained({"max_steps": STEPS // 2}, stopped)
        state = torch.load(stopped / "last.pth", weights_only=True)
        state["config"]["max_steps"] = STEPS  # the schedule is constant
        torch.save(state, stopped / "last.pth")
        values, resumed = trained({}, stopped)
    assert len(values) == STEPS, values
    between, off = relative(second, first), relative(resumed, first)
    assert off <= max(10 * between, 0.005), (off, between)
    return {
        "two whole runs differ by": between,
        "resumed differs by": off,
        "logged": values,
        "CUDA's state kept": str("cuda" in state["ranks"][0]["random"]),
    }


def host_reads() -> dict[str, Any]:
    """The lines at which the trainer's second step waits for the device, as torch reports them."""
    if not ON_GPU:
        return {"skipped": "needs CUDA"}
    config = digits_config({"max_steps": 3, "log_every": 10**6, "checkpoint_every": 10**6})

    def watched(source: Iterator[Views]) -> Iterator[Views]:
        for number, views in enumerate(source):
            torch.cuda.set_sync_debug_mode("warn" if number == 1 else "default")
            yield views

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = Trainer(config, Path(folder), Processes(DEVICE))
        trainer.views = TimedViews(watched(trainer.views.batches(0, 0)))
        try:
            trainer.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(
        Counter(
            f"{Path(warning.filename).name}:{warning.lineno}"
            for warning in told
            if "synchroniz" in str(warning.message)
        )
    )
