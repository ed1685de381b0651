"""Linear classifiers on a frozen encoder: on features computed once, or on augmented images.

Legend: N images, F features, C classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from pretrain.config.probe import AugmentedLinearConfig, LinearConfig, ProbeConfig
from pretrain.probes.features import FrozenEncoder, Labelled, LabelledViews, batches
from pretrain.probes.knn import refuse_labels
from pretrain.runtime.checkpoint import load_state, save_atomically
from pretrain.runtime.rng import derived_seed, epoch_order
from pretrain.training.optimizers import LARS

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "lars": LARS,
    "sgd": torch.optim.SGD,
}
logger = logging.getLogger(__name__)


def fit_linear(
    features: Tensor, labels: Tensor, num_classes: int, config: LinearConfig, seed: int
) -> nn.Linear:
    """Return the classifier trained on features by Adam, as W-MSE's code does.

    The weight decay is Adam's (added to the gradient, of weight and bias alike), so the optimum is
    that of mean cross entropy + weight_decay / 2 times the squared norm of both.

    Args:
        features: [N, F] float32; the classifier is trained on their device.
        labels: [N] int64, from 0 to C - 1, on the same device.
        num_classes: C.
        config: Epochs, batch size, learning rates and weight decay.
        seed: Fixes the first weights and the order of the images.

    Raises:
        ValueError: A label is none of the classes, or there is not one for each row of features.

    Example:
        >>> features = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> classifier = fit_linear(features, labels, 2, LinearConfig(epochs=50, lr=0.1), seed=0)
        >>> classifier(features).argmax(1).tolist()
        [0, 0, 1, 1]
    """
    refuse_labels(labels, num_classes)
    if len(labels) != len(features):
        raise ValueError(f"{len(features)} rows of features want as many labels, got {len(labels)}")
    generator = torch.Generator().manual_seed(derived_seed(seed, 4))
    width = features.shape[1]
    classifier = _drawn(width, num_classes, 1 / math.sqrt(width), generator).to(features.device)
    optimizer = torch.optim.Adam(classifier.parameters(), weight_decay=config.weight_decay)
    for epoch in range(config.epochs):
        share = epoch / config.epochs
        _set_lr(optimizer, config.lr * (config.final_lr / config.lr) ** share)
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for rows in torch.split(order, config.batch_size):
            loss = F.cross_entropy(classifier(features[rows]), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
    return classifier


def _drawn(width: int, num_classes: int, bound: float, generator: torch.Generator) -> nn.Linear:
    """Return a layer with torch's usual draw, from a generator of its own."""
    layer = nn.Linear(width, num_classes, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def crop_view(size: int, config: AugmentedLinearConfig) -> v2.Transform:
    """Return the random crop and flip of ImageNet's training images, uint8."""
    crop = v2.RandomResizedCrop(
        size,
        scale=config.crop_scale,
        ratio=config.crop_ratio,
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    return v2.Compose([crop, v2.RandomHorizontalFlip(config.flip)])


class AugmentedTraining:
    """Trains a classifier on random crops, as far as `state_path` does not hold it."""

    def __init__(
        self,
        frozen: FrozenEncoder,
        images: Labelled,
        num_classes: int,
        config: ProbeConfig,
    ) -> None:
        assert config.augmented_linear is not None
        self.frozen, self.seed = frozen, config.seed
        self.config = config.augmented_linear
        self.data = config.data
        view = crop_view(config.image.size, self.config)
        self.dataset = LabelledViews(images, view, config.seed)
        width = frozen.features(self.dataset[0][0][None]).shape[1]
        generator = torch.Generator().manual_seed(derived_seed(config.seed, 5))
        self.classifier = _drawn(width, num_classes, 0.01, generator)
        nn.init.zeros_(self.classifier.bias)
        self.classifier.to(frozen.device)
        self.optimizer = _OPTIMIZERS[self.config.optimizer](
            self.classifier.parameters(),
            lr=self.config.lr,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
        )

    def run(self, state_path: Path | None = None) -> nn.Linear:
        """Return the trained classifier; goes on from the last whole epoch in `state_path`."""
        epochs, lr = self.config.epochs, self.config.lr
        for epoch in range(self._resume(state_path), epochs):
            _set_lr(self.optimizer, 0.5 * lr * (1 + math.cos(math.pi * epoch / epochs)))
            loss = self._epoch(epoch)
            logger.info("linear classifier: epoch %d of %d, loss %.4f", epoch + 1, epochs, loss)
            if state_path is not None:
                state = {"epoch": epoch + 1, "classifier": self.classifier.state_dict()}
                state |= {"optimizer": self.optimizer.state_dict(), "made_by": self._identity()}
                save_atomically(state, state_path)
        return self.classifier

    def _epoch(self, epoch: int) -> float:
        self.dataset.epoch = epoch
        order = epoch_order(len(self.dataset), self.seed, epoch)
        value = math.nan
        for pixels, labels in batches(self.dataset, self.config.batch_size, self.data, order):
            scores = self.classifier(self.frozen.features(pixels))
            loss = F.cross_entropy(scores, labels.to(self.frozen.device))
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self.optimizer.step()
            value = loss.item()
        if not math.isfinite(value):
            raise ValueError(f"linear classifier: loss became {value}; try a smaller lr_per_256")
        return value

    def _identity(self) -> str:
        """Return what must be equal between a kept state and the training that goes on from it."""
        weights = sum(float(p.double().sum()) for p in self.frozen.encoder.parameters())
        data = (len(self.dataset), self.classifier.out_features, self.seed)
        made_in = ("tf32",) if self.frozen.tf32 else ()
        return repr((self.config.model_dump(), data, f"{weights:.9g}", *made_in))

    def _resume(self, path: Path | None) -> int:
        """Take up the state in `path`, if there is one; return how many epochs are done."""
        state = load_state(path) if path is not None and path.exists() else None
        if state is None:
            return 0
        if state.get("made_by") != self._identity():
            raise ValueError(f"{path}: is of another probe or backbone; remove it to start over")
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["epoch"])
