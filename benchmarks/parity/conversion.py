"""A MoCo checkpoint through MoCo's own conversion script and through ours."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.parity.comparison import Row, compare_tensors
from benchmarks.parity.peers import run_script
from transfer.convert import convert_checkpoint

SCRIPT = "detection/convert-pretrain-to-detectron2.py"
HEAD = "the projection head, under a name that detectron2's ResNet has not"


def compare(paths: dict[str, Path], scratch: Path) -> list[Row]:
    """Return how many of the converted tensors are equal byte for byte."""
    theirs, ours = (tensors(path) for path in converted(paths["moco"], scratch))
    known = {name: HEAD for name in theirs if name.startswith("stem.fc.")}
    label = ("conversion", "ResNet-50 of a MoCo v2 checkpoint: tensors by detectron2's name")
    return [compare_tensors(label, theirs, ours, known=known)]


def converted(moco: Path, scratch: Path) -> tuple[Path, Path]:
    """Return the files that MoCo's script and our converter make of one random checkpoint."""
    source, theirs, ours = (scratch / name for name in ("moco.pth.tar", "theirs.pkl", "ours.pkl"))
    write_checkpoint(source)
    run_script((moco / SCRIPT).resolve(), source, theirs)
    convert_checkpoint(source, ours)
    return theirs, ours


def tensors(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a converted file; MoCo's script, which wrote it, has run anyway."""
    with path.open("rb") as file:
        return {name: torch.as_tensor(value) for name, value in pickle.load(file)["model"].items()}


def write_checkpoint(path: Path) -> None:
    """Write a random ResNet-50 with both encoders, heads and queue, as MoCo v2 saves them."""
    torch.manual_seed(0)
    state: dict[str, Any] = {}
    for encoder in ("encoder_q", "encoder_k"):
        model = torchvision.models.resnet50(num_classes=128)
        model.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), model.fc)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                _draw_statistics(module)
        state |= {f"module.{encoder}.{name}": value for name, value in model.state_dict().items()}
    state["module.queue"] = nn.functional.normalize(torch.randn(128, 64), dim=0)
    state["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    content = {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {}}
    torch.save(content, path)


def _draw_statistics(norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    with torch.no_grad():
        norm.weight.uniform_(0.4, 0.8)
        norm.bias.normal_(std=0.1)
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
        norm.num_batches_tracked.fill_(1000)
