"""Optimisers over a model's parameters; the learning rate is set anew before every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from pretrain.config.pretrain import OptimizerConfig

Groups = list[dict[str, Any]]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You et al., arXiv 1708.03888, algorithm 1).

    With weights w, gradients g, decay b, momentum m, trust coefficient c:
    v <- m v + lr * ratio * (g + b w), w <- w - v, ratio = c |w| / (|g| + b |w|).
    The ratio is 1 where a norm is 0, and, as all self-supervised uses of LARS have it, for biases
    and the parameters of norms (one dimension or none).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = dict(
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
        )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, and return what `closure` returns."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return value

    def _update(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        decay, grad = group["weight_decay"], weight.grad
        assert grad is not None
        direction = grad.add(weight, alpha=decay)
        if weight.dim() > 1:
            weight_norm, grad_norm = weight.norm(), grad.norm()
            ratio = group["trust_coefficient"] * weight_norm / (grad_norm + decay * weight_norm)
            usable = (weight_norm > 0) & (grad_norm > 0)
            direction.mul_(torch.where(usable, ratio, torch.ones_like(ratio)))
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity = state["velocity"].mul_(group["momentum"]).add_(direction, alpha=group["lr"])
        weight.sub_(velocity)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> Groups:
    """Return all parameters in one group, or biases and norms in a second one without decay."""
    parameters = list(model.parameters())
    if config.decay_norm_and_bias:
        return [{"params": parameters}]
    return [
        {"params": [p for p in parameters if p.dim() > 1]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimiser that `config` names, its learning rate still 0."""
    momentum = {"momentum": config.momentum}
    kinds: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, float]]] = {
        "adam": (torch.optim.Adam, {}),
        "lars": (LARS, {**momentum, "trust_coefficient": config.trust_coefficient}),
        "sgd": (torch.optim.SGD, momentum),
    }
    kind, settings = kinds[config.name]
    groups = parameter_groups(model, config)
    return kind(groups, lr=0.0, weight_decay=config.weight_decay, **settings)
