"""The training loop and its parts."""

from pretrain.training.divergence import DivergedError
from pretrain.training.trainer import Trainer

__all__ = ["DivergedError", "Trainer"]
