"""Entries of a backbone that arrived in a detector, and those that did not."""

import torch

from tests.transfer.published import resnet
from transfer.checkpoints.read import Backbone
from transfer.resnet.loaded import not_loaded
from transfer.verify import c4_model


def test_what_the_checkpointer_leaves_out_is_seen() -> None:
    model = c4_model(Backbone(resnet("resnet50"), "resnet50", "torchvision"))
    lost = not_loaded(model, {"stem.conv1.weight": torch.ones(1)})
    assert len(lost) == 265 and {"stem.conv1.weight", "res5.2.conv3.norm.bias"} <= set(lost)
