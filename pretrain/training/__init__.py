"""The training loop and its parts."""

from pretrain.runtime.faults import DivergedError
from pretrain.training.trainer import Trainer

__all__ = ["DivergedError", "Trainer"]
