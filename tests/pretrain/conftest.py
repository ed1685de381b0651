"""Small configs, images and embeddings that the tests of pretraining start from."""

import multiprocessing
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig
from pretrain.models import encoder
from pretrain.whitening.inverse_sqrt import _METHODS, NewtonSchulz

# A process of the fork server has these; a spawned one imports them for five seconds.
multiprocessing.set_forkserver_preload(
    ["torch", "torchvision", "torch.utils.tensorboard", "torch.distributed", "rich"]
)
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., PretrainConfig]:
    """Return a function that makes a config over 20 small noise images, with changes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")

    def make(**changes: object) -> PretrainConfig:
        content = {
            "method": "w-mse",
            "data": {"name": "noise", "root": str(folder)},
            "augment": {"size": 32},
            "model": {"arch": "resnet18", "projector_hidden": 16, "embedding_dim": 4},
            "loss": {"name": "w-mse", "sub_batch": 8},
            "optimizer": {"lr": 0.001, "warmup_steps": 1},
            "batch_size": 8,
            "max_steps": 5,
            "log_every": 1,
            "checkpoint_every": 2,
        }
        return PretrainConfig.model_validate(content | changes)

    return make


@pytest.fixture
def small_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every model have an encoder that costs next to nothing."""
    path = Path(__file__).with_name("small_net.py")
    monkeypatch.setattr(encoder, "build_encoder", runpy.run_path(str(path))["build_encoder"])


@pytest.fixture
def colours(tmp_path: Path) -> Callable[..., ProbeConfig]:
    """Return a function that makes a probe of images whose class is their colour."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("val", 4)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = torch.randint(-25, 26, (3,), generator=generator).tolist()
                shade = tuple(a + b for a, b in zip(colour, noise, strict=True))
                Image.new("RGB", (20, 16), shade).save(folder / f"{index}.png")

    def make(**changes: object) -> ProbeConfig:
        content = {
            "data": {"name": "colours", "root": tmp_path / "data", "format": "imagefolder"},
            "image": {"size": 8},
            "knn": {"k": 3},
            "batch_size": 4,
        }
        return ProbeConfig.model_validate(content | changes)

    return make


@pytest.fixture
def embeddings() -> Callable[..., torch.Tensor]:
    """Return a function that makes correlated embeddings [V, N, D] of images in several views."""

    def make(
        V: int, N: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(N, D, generator=generator, dtype=dtype)
        views = images + 0.7 * torch.randn(V, N, D, generator=generator, dtype=dtype)
        return views @ torch.randn(D, D, generator=generator, dtype=dtype) / D**0.5

    return make


@pytest.fixture
def zca_by_matmul(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ZCA take the way it takes on a GPU, by matrix products alone."""
    monkeypatch.setitem(_METHODS, "zca", NewtonSchulz.of_unread)
