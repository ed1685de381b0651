"""Encoder (torchvision's ResNet without its classifier) and projector.

V views, N images, F encoder features, D embedding dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from pretrain.config.pretrain import LastBatchNorm, ModelConfig
from pretrain.runtime.device import Views


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


def build_mlp(
    widths: Sequence[int], *, hidden_batchnorm: bool = True, last_batchnorm: LastBatchNorm = "none"
) -> nn.Sequential:
    """Return Linear-BatchNorm-ReLU layers and a last Linear; `widths` begin with the input's.

    The last Linear has no bias where BatchNorm takes the mean away behind it.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths[:-1]):
        norm = [nn.BatchNorm1d(width_out)] if hidden_batchnorm else []
        layers += [nn.Linear(width_in, width_out), *norm, nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_batchnorm == "none"))
    if last_batchnorm != "none":
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_batchnorm == "affine"))
    return nn.Sequential(*layers)


def build_projector(num_features: int, config: ModelConfig) -> nn.Sequential:
    """Return Linear-BatchNorm-ReLU layers and a last plain Linear, unless `config` says more."""
    hidden = [config.projector_hidden] * (config.projector_layers - 1)
    return build_mlp(
        [num_features, *hidden, config.embedding_dim],
        hidden_batchnorm=config.hidden_batchnorm,
        last_batchnorm=config.last_batchnorm,
    )


def runs_of_one_size(views: Iterable[Tensor]) -> list[Tensor]:
    """Return the views that follow each other and have one size, as `[V, N, 3, S, S]`."""
    runs = itertools.groupby(views, key=lambda view: view.shape)
    return [torch.stack(list(run)) for _, run in runs]


class Features(NamedTuple):
    """What a model makes of the views of a batch."""

    encoding: Tensor  # [V, N, F]
    embedding: Tensor  # [V, N, D]
    beside: dict[str, Tensor]  # what the method's loss takes beside the embedding, by keyword


class SelfSupervisedModel(nn.Module):
    """Encoder and projector; the projector is called once over all views together.

    What a method adds is in a subclass, in `pretrain.methods`.

    The encoder is called once per view, as the code of W-MSE and of CW-RGP does, so that its
    BatchNorm sees the images of one view at a time, or with `encoder_batchnorm: all-views` once, or
    once for views of one size that follow each other where sizes differ.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder: nn.Module
        self.encoder, num_features = build_encoder(config)
        self.projector = build_projector(num_features, config)
        self.per_view = config.encoder_batchnorm == "per-view"

    def forward(self, views: Views) -> Features:
        """Return the features of `views`."""
        return Features(*self.embed(self.encoder, self.projector, views), {})

    def embed(
        self, encoder: nn.Module, projector: nn.Module, views: Views
    ) -> tuple[Tensor, Tensor]:
        """Return encoding `[V, N, F]` and embedding `[V, N, D]` of `views` of any sizes."""
        if self.per_view:
            encoding = torch.stack([encoder(view) for view in views])
        else:
            runs = [views] if isinstance(views, Tensor) else runs_of_one_size(views)
            of_runs = [encoder(run.flatten(0, 1)).unflatten(0, run.shape[:2]) for run in runs]
            encoding = torch.cat(of_runs)
        return encoding, projector(encoding.flatten(0, 1)).unflatten(0, encoding.shape[:2])

    def encoders(self) -> Iterable[nn.Module]:
        """Return all modules that are called on images, for compilation."""
        return [self.encoder]

    def constant_rate_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters whose learning rate stays at its peak."""
        return []

    def set_progress(self, progress: float) -> None:
        """Take what is scheduled from `progress`, the part of all steps that are over, in [0, 1).

        Called before each step; a step's place is all that a schedule may depend on.
        """

    def after_step(self) -> None:
        """Follow the optimiser, which has just changed the parameters; called once a step."""
