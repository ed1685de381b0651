"""Encoder (torchvision's ResNet without its classifier) and projector.

V views, N images, F encoder features, D embedding dimensions.
"""

from __future__ import annotations

import itertools

import torch
import torchvision
from torch import Tensor, nn

from pretrain.config import ModelConfig


def build_encoder(config: ModelConfig) -> tuple[nn.Module, int]:
    """Return torchvision's randomly initialised ResNet with `fc` removed, and its feature count."""
    encoder = torchvision.models.get_model(
        config.arch, weights=None, zero_init_residual=config.zero_init_residual
    )
    num_features = encoder.fc.in_features
    encoder.fc = nn.Identity()
    return encoder, num_features


def build_projector(num_features: int, config: ModelConfig) -> nn.Sequential:
    """Return Linear-BatchNorm-ReLU layers and a last plain Linear (no BatchNorm, as published)."""
    widths = [num_features, *[config.projector_hidden] * (config.projector_layers - 1)]
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.BatchNorm1d(width_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], config.embedding_dim))


class SelfSupervisedModel(nn.Module):
    """Encoder called once per view, projector once over all views, as published for W-MSE.

    So BatchNorm sees one view at a time in the encoder and all views together in the projector.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder, num_features = build_encoder(config)
        self.projector = build_projector(num_features, config)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return encoding `[V, N, F]` and embedding `[V, N, D]` of `views [V, N, 3, H, W]`."""
        encoding = torch.stack([self.encoder(view) for view in views])
        embedding = self.projector(encoding.flatten(0, 1))
        return encoding, embedding.unflatten(0, views.shape[:2])
