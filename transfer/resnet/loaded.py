"""The entries of a backbone that a detector holds, value for value, and those that it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from transfer.resnet.names import COUNTER

PLACES = ("backbone.bottom_up.", "backbone.", "roi_heads.")  # of a backbone in a detector


def not_loaded(model: nn.Module, weights: Mapping[str, Any]) -> list[str]:
    """Return what the file has and the model lacks, and what the model has that is not in it."""
    counted = any(name.endswith(COUNTER) for name in weights)
    names = {
        next((name.removeprefix(place) for place in PLACES if name.startswith(place)), "")
        for name in model.state_dict()
    }
    body = {name for name in names if name.startswith(("stem.", "res"))}
    unfilled = {name for name in body - set(weights) if counted or not name.endswith(COUNTER)}
    return lost_entries(model, weights) + sorted(unfilled)


def lost_entries(model: nn.Module, weights: Mapping[str, Any]) -> list[str]:
    """Return the names in `weights` that `model` does not hold, value for value."""
    state = model.state_dict()
    lost = []
    for name, value in weights.items():
        there = [state[place + name] for place in PLACES if place + name in state]
        frozen_counter = name.endswith(COUNTER) and not there
        if not frozen_counter and not any(
            torch.equal(tensor.cpu(), torch.as_tensor(value)) for tensor in there
        ):
            lost.append(name)
    return lost
