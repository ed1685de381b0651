"""Training state on disk: whole or absent, read back without executing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretrain.config import PretrainConfig

LAST = "last.pth"
BACKBONE = "backbone.pth"


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Write with `torch.save` under a temporary name in the same folder, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any] | None:
    """Return the checkpoint at `path`, or None where there is none yet.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (torch raises many types for a damaged file)
        first_line = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: damaged checkpoint ({first_line}); remove it to start this run over"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, wanted a checkpoint")
    return content


def save_backbone(encoder: nn.Module, config: PretrainConfig, path: Path) -> None:
    """Write `backbone.pth`: torchvision's names without `fc`, and how its input was normalised."""
    state = {name: value.detach().cpu().clone() for name, value in encoder.state_dict().items()}
    content = {
        "state_dict": state,
        "arch": config.model.arch,
        "method": config.method,
        "input": {
            "format": "RGB",
            "pixel_mean": [round(255 * value, 6) for value in config.augment.mean],
            "pixel_std": [round(255 * value, 6) for value in config.augment.std],
        },
    }
    save_atomically(content, path)
