"""Encoder and projector, and the backbone file that is read back."""

from pretrain.models.backbone_file import (
    BACKBONE,
    InputConvention,
    read_backbone_file,
    save_backbone,
)
from pretrain.models.encoder import Features, SelfSupervisedModel

__all__ = [
    "BACKBONE",
    "Features",
    "InputConvention",
    "SelfSupervisedModel",
    "read_backbone_file",
    "save_backbone",
]
