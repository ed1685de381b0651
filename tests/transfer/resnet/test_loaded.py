"""What a detector holds of a backbone."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from transfer.checkpoints.read import Backbone
from transfer.resnet.loaded import not_loaded
from transfer.verify import c4_model


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


published = load(Path(__file__).resolve().parents[1] / "published.py")
resnet = published.resnet


def test_what_the_checkpointer_leaves_out_is_seen() -> None:
    model = c4_model(Backbone(resnet("resnet50"), "resnet50", "torchvision"))
    lost = not_loaded(model, {"stem.conv1.weight": torch.ones(1)})
    assert len(lost) == 265 and {"stem.conv1.weight", "res5.2.conv3.norm.bias"} <= set(lost)
