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

    _step_supports_amp_scaling = True  # for GradScaler: `found_inf` is heeded without a host read

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
        """Take one step, and return what `closure` returns.

        As torch's fused optimisers it divides gradients by the attribute `grad_scale`, if there is
        one, and changes nothing where `found_inf` is 1.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group)
        return value

    def _update(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        grads: Any = [weight.grad for weight in weights]
        if (scale := getattr(self, "grad_scale", None)) is not None:
            grads = torch._foreach_div(grads, scale)
        directions = torch._foreach_add(grads, weights, alpha=decay)
        layers = [number for number, weight in enumerate(weights) if weight.dim() > 1]
        if layers:
            weight_norm = torch.stack(torch._foreach_norm([weights[n] for n in layers]))
            grad_norm = torch.stack(torch._foreach_norm([grads[n] for n in layers]))
            ratio = group["trust_coefficient"] * weight_norm / (grad_norm + decay * weight_norm)
            usable = (weight_norm > 0) & (grad_norm > 0)
            ratios = torch.where(usable, ratio, torch.ones_like(ratio)).unbind()
            torch._foreach_mul_([directions[n] for n in layers], ratios)
        torch._foreach_mul_(directions, group["lr"])
        velocities: list[torch.Tensor] = []
        for weight in weights if group["momentum"] else ():
            if "velocity" not in self.state[weight]:
                self.state[weight]["velocity"] = torch.zeros_like(weight)
            velocities.append(self.state[weight]["velocity"])
        torch._fused_sgd_(
            weights,
            directions,
            velocities,
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=1.0,  # the rate is in the velocity
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            found_inf=getattr(self, "found_inf", None),
        )


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, constant_rate: Iterable[nn.Parameter] = ()
) -> Groups:
    """Return the trained parameters in groups that differ in decay or learning rate.

    All in one, or biases and norms in a group of their own where they have no decay or another
    `rate` (over that of the others); those whose rate is constant apart from those that follow the
    schedule, marked `constant_rate`.
    """
    constant = {id(parameter) for parameter in constant_rate}
    parted = not config.decay_norm_and_bias or config.norm_and_bias_rate != 1.0
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        small, steady = parted and parameter.dim() <= 1, id(parameter) in constant
        group = groups.setdefault((steady, small), {"params": []})
        group["params"].append(parameter)
        if small and not config.decay_norm_and_bias:
            group["weight_decay"] = 0.0
        if small and config.norm_and_bias_rate != 1.0:
            group["rate"] = config.norm_and_bias_rate
        if steady:
            group["constant_rate"] = True
    return [groups[key] for key in sorted(groups)]


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    constant_rate: Iterable[nn.Parameter] = (),
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Return the optimiser that `config` names, its learning rate still 0.

    The groups of its parameters are those of `parameter_groups`.

    `fused`, on a GPU unless given, takes torch's fused kernels for Adam and SGD: a few launches a
    step, and none of its changes where the optimiser's attribute `found_inf` is 1.
    """
    fused = next(model.parameters()).is_cuda if fused is None else fused
    kernels: dict[str, Any] = {"fused": True} if fused else {}
    momentum = {"momentum": config.momentum}
    kinds: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
        "adam": (torch.optim.Adam, kernels),
        "lars": (LARS, {**momentum, "trust_coefficient": config.trust_coefficient}),
        "sgd": (torch.optim.SGD, {**momentum, **kernels}),
    }
    kind, settings = kinds[config.name]
    groups = parameter_groups(model, config, constant_rate)
    optimizer = kind(groups, lr=0.0, weight_decay=config.weight_decay, **settings)
    optimizer.register_step_pre_hook(match_strides)
    if config.name == "sgd" and fused and config.momentum:
        # else left without a value if step 1 is left out
        for parameter in (p for group in groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def match_strides(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Lay out gradients and state in memory as their weights are; a hook before each step.

    Fused kernels need it: on a GPU they raise, on a CPU they pair other elements. Compiled models
    have other gradients, and a state may come from a run with another `channels_last`.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight.grad.stride() != weight.stride():
                weight.grad = torch.empty_like(weight).copy_(weight.grad)
            state = optimizer.state.get(weight, {})
            for name, value in state.items():
                if value.shape == weight.shape and value.stride() != weight.stride():
                    state[name] = torch.empty_like(weight).copy_(value)
