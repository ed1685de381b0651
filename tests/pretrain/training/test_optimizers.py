"""LARS against the paper's formula by hand, and who gets weight decay."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.pretrain import OptimizerConfig
from pretrain.training.optimizers import LARS, build_optimizer, parameter_groups


def step(optimizer: torch.optim.Optimizer, grads: dict[nn.Parameter, list[float]]) -> None:
    for weight, grad in grads.items():
        weight.grad = torch.tensor(grad).view_as(weight)
    optimizer.step()


def test_lars_takes_two_steps_worked_out_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([weight], lr=2.0, momentum=0.5, weight_decay=0.1, trust_coefficient=0.01)
    # |w| = 5, |g| = 1: ratio = 0.01 * 5 / (1 + 0.1 * 5) = 1/30
    # v = 2 / 30 * (g + 0.1 w) = ((0.6 + 0.3) / 15, (0.8 + 0.4) / 15) = (0.06, 0.08)
    step(optimizer, {weight: [0.6, 0.8]})
    assert weight.flatten().tolist() == pytest.approx([2.94, 3.92])
    # the rate enters the velocity: |w| = 4.9, |g| = 2, ratio = 0.049 / 2.49
    # v = 0.5 (0.06, 0.08) + 0.2 * 0.049 / 2.49 * (0 + 0.294, 2 + 0.392)
    for group in optimizer.param_groups:
        group["lr"] = 0.2
    step(optimizer, {weight: [0.0, 2.0]})
    ratio = 0.2 * 0.049 / 2.49
    wanted = [2.94 - 0.03 - ratio * 0.294, 3.92 - 0.04 - ratio * 2.392]
    assert weight.flatten().tolist() == pytest.approx(wanted)


def test_lars_leaves_biases_norms_and_zeros_to_plain_sgd() -> None:
    bias = nn.Parameter(torch.tensor([3.0, 4.0]))
    zero = nn.Parameter(torch.zeros(1, 2))
    optimizer = LARS([bias, zero], lr=0.5, momentum=0.9, trust_coefficient=0.01)
    step(optimizer, {bias: [1.0, -1.0], zero: [1.0, 2.0]})
    assert bias.tolist() == pytest.approx([2.5, 4.5])
    assert zero.flatten().tolist() == pytest.approx([-0.5, -1.0])
    step(optimizer, {bias: [0.0, 0.0], zero: [0.0, 0.0]})
    assert bias.tolist() == pytest.approx([2.5 - 0.45, 4.5 + 0.45])


def test_lars_goes_on_from_its_state() -> None:
    def run(reload: bool) -> list[float]:
        weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        optimizer = LARS([weight], lr=1.0)
        step(optimizer, {weight: [1.0, 2.0]})
        if reload:
            state = optimizer.state_dict()
            optimizer = LARS([weight], lr=0.0)
            optimizer.load_state_dict(state)
        step(optimizer, {weight: [1.0, 2.0]})
        return weight.flatten().tolist()

    assert run(True) == run(False)


def lars_one_by_one(
    weights: list[Tensor], velocities: list[Tensor], grads: list[Tensor], lr: float, decay: float
) -> None:
    """LARS as its paper writes it, weight after weight; momentum 0.9, trust coefficient 0.001."""
    for weight, velocity, grad in zip(weights, velocities, grads, strict=True):
        direction = grad + decay * weight
        if weight.dim() > 1:
            direction *= 0.001 * weight.norm() / (grad.norm() + decay * weight.norm())
        velocity.mul_(0.9).add_(direction, alpha=lr)
        weight.sub_(velocity)


def test_lars_of_all_weights_together_is_that_of_each() -> None:
    shapes = ((64, 3, 7, 7), (64,), (128, 64), (), (5, 4, 3))
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    plain = [weight.detach().clone() for weight in weights]
    velocities = [torch.zeros_like(weight) for weight in plain]
    optimizer = LARS(weights, lr=0.3, weight_decay=0.01)
    for _ in range(4):
        grads = [torch.randn(shape) for shape in shapes]
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad.clone()
        optimizer.step()
        lars_one_by_one(plain, velocities, grads, 0.3, 0.01)
    for weight, wanted in zip(weights, plain, strict=True):
        torch.testing.assert_close(weight.detach(), wanted, rtol=1e-5, atol=1e-6)


class Calls(TorchDispatchMode):
    """Counts torch's operations: on a GPU each is a launch or more."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is not torch.ops.aten.unbind.int
        return func(*args, **kwargs or {})


def test_lars_takes_as_many_launches_whatever_the_number_of_weights() -> None:
    counts = []
    for num_weights in (2, 50):
        weights = [nn.Parameter(torch.randn(4, 4)) for _ in range(num_weights)]
        optimizer = LARS(weights, lr=0.1)
        for weight in weights:
            weight.grad = torch.randn(4, 4)
        optimizer.step()  # makes the velocities
        with Calls() as calls:
            optimizer.step()
        counts.append(calls.count)
    assert counts[0] == counts[1] < 20


def test_lars_unscales_what_fp16_scaled() -> None:
    weights = [nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (3,))]
    scaled = [copy.deepcopy(weight) for weight in weights]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    for weight, other in zip(weights, scaled, strict=True):
        weight.grad = torch.randn_like(weight)
        other.grad = weight.grad * 8
    LARS(weights, lr=0.1, weight_decay=0.1).step()
    scaler.step(LARS(scaled, lr=0.1, weight_decay=0.1))
    assert all(map(torch.equal, weights, scaled))


@pytest.mark.parametrize("name", ["adam", "lars", "sgd"])
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_step_is_left_out_on_the_device(name: str, first: bool) -> None:
    config = OptimizerConfig.model_validate({"name": name, "lr": 0.1, "weight_decay": 0.1})
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers: list[Any] = [build_optimizer(model, config, fused=True) for model in models]
    grads = [torch.randn(2, 3), torch.randn(2)]
    for model, optimizer in zip(models, optimizers, strict=True):
        optimizer.param_groups[0]["lr"] = 0.1
        bad = [(torch.ones(()), [grad * torch.nan for grad in grads])]
        good = [(torch.zeros(()), [(n + 1) * grad for grad in grads]) for n in range(2)]
        steps = bad + good if first else good[:1] + bad + good[1:]
        for found_inf, values in steps if model is models[0] else good:
            for weight, grad in zip(model.parameters(), values, strict=True):
                weight.grad = grad.clone()
            optimizer.found_inf = found_inf
            optimizer.step()
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize("name", ["adam", "lars", "sgd"])
def test_gradients_and_state_of_another_memory_layout_give_the_same_step(name: str) -> None:
    config = OptimizerConfig.model_validate({"name": name, "lr": 0.1, "weight_decay": 0.1})
    plain = nn.Conv2d(3, 4, 3)
    moved = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    grads = [torch.randn(4, 3, 3, 3) for _ in range(2)]
    first, same, other = (
        build_optimizer(model, config, fused=True) for model in (plain, plain, moved)
    )

    def step(model: nn.Conv2d, optimizer: Any, grad: torch.Tensor) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        model.weight.grad, model.bias.grad = grad.clone(), grad[:, 0, 0, 0].clone()
        optimizer.step()

    step(plain, first, grads[0])
    moved.load_state_dict(plain.state_dict())
    for optimizer in (same, other):
        optimizer.load_state_dict(copy.deepcopy(first.state_dict()))
    step(plain, same, grads[1])
    step(moved, other, grads[1])
    assert moved.weight.stride() != plain.weight.stride()
    torch.testing.assert_close(moved.weight, plain.weight)
    torch.testing.assert_close(moved.bias, plain.bias)


def test_on_a_cpu_torchs_optimisers_stay_as_they_are() -> None:
    for name in ("adam", "sgd"):
        config = OptimizerConfig.model_validate({"name": name, "lr": 0.1})
        assert not build_optimizer(nn.Linear(2, 2), config).defaults["fused"]


@pytest.mark.parametrize(
    ("name", "given", "excluded"),
    [
        ("sgd", {}, False), ("adam", {}, False), ("lars", {}, True),
        ("sgd", {"decay_norm_and_bias": False}, True),
        ("lars", {"decay_norm_and_bias": True}, False),
    ],
)  # fmt: skip
def test_weight_decay_spares_norms_and_biases_where_asked(
    name: str, given: dict[str, object], excluded: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    config = OptimizerConfig.model_validate(
        {"name": name, "lr": 0.5, "weight_decay": 0.1, "momentum": 0.0, **given}
    )
    optimizer = build_optimizer(model, config)
    assert type(optimizer).__name__.lower() == name
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = [
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    ]
    # kernel, bias, the norm's weight, and its bias, which is 0
    assert changed == [True, not excluded, not excluded, False]


def resnet18_parameters() -> tuple[nn.Module, list[list[Tensor]]]:
    """A network of ResNet-18's kinds of tensor, narrow, and gradients of five steps."""
    torch.manual_seed(0)
    block = [nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7, bias=False), nn.BatchNorm2d(8), *block, nn.Conv2d(8, 16, 1, bias=False),
        nn.BatchNorm2d(16), nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 4),
    )  # fmt: skip
    grads = [[torch.randn(p.shape) / 10 for p in model.parameters()] for _ in range(5)]
    return model.double(), [[grad.double() for grad in step] for step in grads]


def test_lars_is_lightlys_at_one_rate() -> None:
    """Lightly's multiplies the velocity by the rate; ours, as the paper's, what it grows by.

    Nor has lightly's a decay where a gradient is zero; it adds 1e-8 to the ratio's denominator, and
    a group without decay has no ratio, whatever its parameters.
    """
    lightly = pytest.importorskip("lightly.utils.lars")
    model, grads = resnet18_parameters()
    other = copy.deepcopy(model)
    config = OptimizerConfig.model_validate({"name": "lars", "lr": 0.2, "weight_decay": 1e-3})
    ours = build_optimizer(model, config)
    kernels = [p for p in other.parameters() if p.dim() > 1]
    groups = [
        {"params": kernels, "weight_decay": 1e-3},
        {"params": [p for p in other.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    theirs = lightly.LARS(groups, lr=0.2, momentum=0.9)
    before = [p.detach().clone() for p in model.parameters()]
    for group in ours.param_groups:
        group["lr"] = 0.2
    for step_grads in grads:
        for network, optimizer in ((model, ours), (other, theirs)):
            for weight, grad in zip(network.parameters(), step_grads, strict=True):
                weight.grad = grad.clone()
            optimizer.step()
    for got, wanted, old in zip(model.parameters(), other.parameters(), before, strict=True):
        step_length = float((old - wanted.detach()).norm())
        assert step_length > 0
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-7 * step_length)


PUBLISHED_BARLOW_TWINS = {"name": "lars", "lr": 0.2, "norm_and_bias_rate": 0.024}


def test_biases_and_norms_have_a_rate_of_their_own() -> None:
    model, _ = resnet18_parameters()
    config = OptimizerConfig.model_validate(PUBLISHED_BARLOW_TWINS)
    kernels, small = parameter_groups(model, config)
    assert "rate" not in kernels and small["rate"] == 0.024
    assert {p.dim() for p in kernels["params"]} == {2, 4} and small["weight_decay"] == 0.0
    assert {p.dim() for p in small["params"]} == {1}
    sgd = OptimizerConfig.model_validate({"name": "sgd", "lr": 0.2, "norm_and_bias_rate": 0.5})
    _, small = parameter_groups(model, sgd)
    assert "weight_decay" not in small and small["rate"] == 0.5  # decayed as the others


def test_every_parameter_is_in_one_group_and_those_without_gradient_in_none() -> None:
    model, _ = resnet18_parameters()
    next(model.parameters()).requires_grad_(False)
    steady = list(model[-1].parameters())
    config = OptimizerConfig.model_validate(PUBLISHED_BARLOW_TWINS)
    groups = parameter_groups(model, config, steady)
    marks = [(bool(g.get("constant_rate")), g.get("rate", 1.0)) for g in groups]
    assert marks == [(False, 1.0), (False, 0.024), (True, 1.0), (True, 0.024)]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in list(model.parameters())[1:])
    assert {id(p) for g in groups[2:] for p in g["params"]} == {id(p) for p in steady}
    adam = OptimizerConfig.model_validate({"lr": 0.1})
    plain, constant = parameter_groups(model, adam, steady)
    assert "constant_rate" not in plain and constant == {"params": steady, "constant_rate": True}
    assert len(parameter_groups(model, adam)) == 1
