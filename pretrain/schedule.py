"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math

from pretrain.config import OptimizerConfig


def lr_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Return the factor on the peak learning rate before step `step` of `total_steps`, from 0.

    Linear warm-up over `warmup_steps`, then constant, half a cosine down to 0 at `total_steps`, or
    `drop_factor` for each entry of `drop_at` (fractions of the run) that has passed.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        span = max(1, total_steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))
    if config.schedule == "step":
        return config.drop_factor ** sum(step >= at * total_steps for at in config.drop_at)
    return 1.0
