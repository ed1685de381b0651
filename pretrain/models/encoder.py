"""Encoder (torchvision's ResNet without its classifier) and projector.

V views, N images, F encoder features, D embedding dimensions.
"""

from __future__ import annotations

import itertools

import torch
import torchvision
from torch import Tensor, nn

from pretrain.config.pretrain import ModelConfig


def build_encoder(config: ModelConfig) -> tuple[nn.Module, int]:
    """Return torchvision's randomly initialised ResNet with `fc` removed, and its feature count."""
    encoder = torchvision.models.get_model(
        config.arch, weights=None, zero_init_residual=config.zero_init_residual
    )
    if config.stem != "imagenet":  # torch's default initialisation, as in the published code
        encoder.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    if config.stem == "small-no-pool":
        encoder.maxpool = nn.Identity()
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
    """Encoder and projector; the projector is called once over all views together.

    The encoder is called once per view, as the code of W-MSE and of CW-RGP does, so that its
    BatchNorm sees the images of one view at a time, or with `encoder_batchnorm: all-views` once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder: nn.Module
        self.encoder, num_features = build_encoder(config)
        self.projector = build_projector(num_features, config)
        self.per_view = config.encoder_batchnorm == "per-view"

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return encoding `[V, N, F]` and embedding `[V, N, D]` of `views [V, N, 3, H, W]`."""
        V, N = views.shape[:2]
        if self.per_view:
            encoding = torch.stack([self.encoder(view) for view in views])
        else:
            encoding = self.encoder(views.flatten(0, 1)).unflatten(0, (V, N))
        return encoding, self.projector(encoding.flatten(0, 1)).unflatten(0, (V, N))
