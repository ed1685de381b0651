"""The k-NN accuracy of an encoder while it trains, without a trace in the training."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pretrain.config.pretrain import PretrainConfig, TrainingProbeConfig
from pretrain.config.probe import KnnConfig, ProbeConfig
from pretrain.models import InputConvention
from pretrain.probes.features import FrozenEncoder, Labelled, feature_chunks
from pretrain.probes.probe import joined, measure_knn, open_sets
from pretrain.runtime.signals import StopRequest

logger = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The run was asked to stop within a probe."""


class TrainingProbe:
    """The images of a probe, opened once, and how the run that is probed normalises its input.

    A trainer calls it after every epoch.

    Raises:
        ValueError: the data cannot be opened, have no labels, or are too few.
    """

    def __init__(self, config: PretrainConfig, settings: TrainingProbeConfig) -> None:
        data = settings.data or config.data
        train, self.test, self.num_classes = open_sets(data)
        self.train = evenly(train, settings.max_images)
        if len(self.train) < settings.k:
            raise ValueError(
                f"{data.root}: {len(self.train)} images are fewer than probe.k = {settings.k}"
            )
        self.every_epochs = settings.every_epochs
        self.config = ProbeConfig.model_validate(
            {
                "data": data.model_dump(),
                "image": {"size": settings.size or config.augment.size, "resize": settings.resize},
                "knn": {"k": settings.k},
            }
        )
        mean, std = config.augment.mean, config.augment.std
        self.convention = InputConvention(
            "RGB", tuple(255 * value for value in mean), tuple(255 * value for value in std)
        )

    def __call__(self, epoch: int, encoder: nn.Module, stop: StopRequest) -> dict[str, float]:
        """Return what is measured after epoch number `epoch`, from 1; of most epochs nothing."""
        return {} if epoch % self.every_epochs else self.measure(encoder, stop)

    def measure(self, encoder: nn.Module, stop: StopRequest) -> dict[str, float]:
        """Return `knn/top1` (and top5) of the encoder as it is, in evaluation mode.

        Random states, running statistics and the mode of every module are as before. Returns
        nothing once `stop` is requested, within a batch.
        """
        assert isinstance(self.config.knn, KnnConfig)

        def features(images: Labelled) -> Iterator[tuple[Tensor, Tensor]]:
            for chunk in feature_chunks(backbone, images, self.config):
                if stop.number:
                    raise _StoppedError
                yield chunk

        modes = [(module, module.training) for module in encoder.modules()]
        try:
            backbone = FrozenEncoder(encoder, self.convention, next(encoder.parameters()).device)
            queries = joined(features(self.test))
            bank = features(self.train)
            return measure_knn(bank, queries, self.num_classes, {"knn": self.config.knn})
        except _StoppedError:
            logger.warning("asked to stop: the probe is left out")
            return {}
        finally:
            for module, mode in modes:
                module.training = mode


def evenly(images: Labelled, limit: int) -> Labelled:
    """Return at most `limit` of the images, evenly spread over them."""
    if len(images) <= limit:
        return images
    return images.part(torch.arange(limit) * len(images) // limit)
