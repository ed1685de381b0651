"""Learning rates and loss weights as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.config.loss import LossConfig
from pretrain.config.pretrain import OptimizerConfig, PretrainConfig


@dataclass(frozen=True)
class Length:
    """The steps of a run and of an epoch; both count from 0."""

    total_steps: int
    steps_per_epoch: int

    @classmethod
    def of(cls, config: PretrainConfig, num_images: int) -> Length:
        """Return the length of a run over `num_images`; what fills no batch is left out."""
        steps_per_epoch = num_images // config.batch_size
        return cls(config.max_steps or (config.epochs or 0) * steps_per_epoch, steps_per_epoch)

    def epoch_start(self, step: int) -> int:
        """Return the first step of the epoch that `step` is in."""
        return step - step % self.steps_per_epoch


def lr_factor(step: int, length: Length, config: OptimizerConfig) -> float:
    """Return the factor on the peak learning rate before step `step`.

    Linear warm-up over `warmup_steps`, then constant, half a cosine down to `final_rate` at the
    end, or `drop_factor` for each entry of `drop_at` (fractions of the run) and
    `drop_epochs_before_end` that has passed. The cosine begins where the warm-up ends; with
    `lr_update: epoch` it begins at step 0 and takes its value at the start of the epoch (CW-RGP on
    ImageNet, as MoCo).
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    per_epoch = config.lr_update == "epoch"
    now = length.epoch_start(step) if per_epoch else step
    if config.schedule == "cosine":
        begin = 0 if per_epoch else config.warmup_steps
        height = 0.5 * (1 + math.cos(math.pi * (now - begin) / max(1, length.total_steps - begin)))
        return height + config.final_rate * (1 - height)
    if config.schedule == "step":
        drops = [at * length.total_steps for at in config.drop_at]
        drops += [
            length.total_steps - epochs * length.steps_per_epoch
            for epochs in config.drop_epochs_before_end
        ]
        return config.drop_factor ** sum(now >= drop for drop in drops)
    return 1.0


def covariance_weight(step: int, length: Length, config: PretrainConfig) -> float:
    """Return the weight of CW-RGP's covariance term before step `step`; 0 for other losses.

    CW-RGP's code sets it to 0 after the first step of the epoch that ends the term.
    """
    if not isinstance(config.loss, LossConfig):
        return 0.0
    if config.covariance_epochs is None:
        return config.loss.covariance_weight
    end = config.covariance_epochs * length.steps_per_epoch + (config.covariance_extra_steps or 0)
    return 0.0 if step >= end else config.loss.covariance_weight
