"""LARS against the paper's formula by hand, and who gets weight decay."""

import pytest
import torch
from torch import nn

from pretrain.config.pretrain import OptimizerConfig
from pretrain.training.optimizers import LARS, build_optimizer


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
