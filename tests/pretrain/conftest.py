from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.config import PretrainConfig


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
