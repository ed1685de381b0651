"""The k-NN accuracy of an encoder while it trains, without a trace in the training."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pretrain.config.data import DataConfig
from pretrain.config.pretrain import PretrainConfig, TrainingProbeConfig
from pretrain.config.probe import KnnConfig, ProbeConfig
from pretrain.models import InputConvention
from pretrain.probes.features import FrozenEncoder, Labelled, feature_chunks, open_labelled
from pretrain.probes.probe import joined, measure_knn
from pretrain.runtime.signals import StopRequest
from pretrain.runtime.tf32 import set_tf32

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
        train, self.test = neighbours_and_test(data, settings.test_fraction)
        self.num_classes = int(max(train.labels.max(), self.test.labels.max())) + 1
        self.train = evenly(train, settings.max_images)
        if len(self.train) < settings.k:
            raise ValueError(
                f"{data.root}: {len(self.train)} images are fewer than probe.k = {settings.k}"
            )
        self.trains_in_tf32 = config.compute.precision == "tf32"
        self.every_epochs = settings.every_epochs
        self.config = ProbeConfig.model_validate(
            {
                "precision": settings.precision,
                "data": data.model_dump(),
                "image": {
                    "size": settings.size or config.augment.largest_size,
                    "resize": settings.resize,
                },
                "knn": {"k": settings.k},
            }
        )
        mean, std = config.augment.mean, config.augment.std
        self.convention = InputConvention(
            "RGB", tuple(255 * value for value in mean), tuple(255 * value for value in std)
        )

    def __call__(
        self, epoch: int | None, encoder: nn.Module, stop: StopRequest
    ) -> dict[str, float]:
        """Return what is measured after epoch number `epoch`, from 1; of most epochs nothing.

        None is the end of the training.
        """
        if epoch is not None and epoch % self.every_epochs:
            return {}
        return self.measure(encoder, stop)

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
            backbone.compute_in(self.config.precision)
            queries = joined(features(self.test))
            bank = features(self.train)
            return measure_knn(bank, queries, self.num_classes, {"knn": self.config.knn})
        except _StoppedError:
            logger.warning("asked to stop: the probe is left to the run that goes on")
            return {}
        finally:
            set_tf32(self.trains_in_tf32)
            for module, mode in modes:
                module.training = mode


def neighbours_and_test(data: DataConfig, fraction: float | None) -> tuple[Labelled, Labelled]:
    """Return the images that are neighbours, and those that are tested on them.

    Raises:
        ValueError: the data cannot be opened, have no labels, or nothing is left to test.
    """
    train = open_labelled(data, "train")
    return (train, open_labelled(data, "test")) if fraction is None else divided(train, fraction)


def divided(images: Labelled, fraction: float) -> tuple[Labelled, Labelled]:
    """Return the images without, and with only, this fraction of each class, drawn by a fixed seed.

    Of two images or more at least one stands on either side.

    Raises:
        ValueError: no class has two.
    """
    labels, generator = images.labels[images.numbers], torch.Generator().manual_seed(0)
    is_test = torch.zeros(len(images), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        places = torch.nonzero(labels == label).flatten()
        count = min(max(1, round(fraction * len(places))), len(places) - 1)
        is_test[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    if not is_test.any():
        raise ValueError(
            f"probe.test_fraction: none of {len(images)} images has another of its class"
        )
    neighbours, tested = (torch.nonzero(mask).flatten() for mask in (~is_test, is_test))
    return images.part(neighbours), images.part(tested)


def evenly(images: Labelled, limit: int) -> Labelled:
    """Return at most `limit` of the images, evenly spread over them."""
    if len(images) <= limit:
        return images
    return images.part(torch.arange(limit) * len(images) // limit)
