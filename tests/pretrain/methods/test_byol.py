"""BYOL's model: predictions of the branch's embeddings, and two steps of it in float64."""

import math
from collections.abc import Callable

import pytest
import torch

from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import build_loss
from pretrain.methods import build_model
from pretrain.methods.byol import BYOLModel

Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")
BYOL = {"loss": {"name": "byol", "predictor_hidden": 6, "momentum": 0.9}}


def built(config: PretrainConfig) -> BYOLModel:
    torch.manual_seed(0)
    model = build_model(config).train()
    assert isinstance(model, BYOLModel)
    return model


def test_targets_are_of_the_branch_and_have_no_gradient(tiny: Make) -> None:
    config = tiny(**BYOL)
    model, views = built(config), torch.randn(3, 5, 3, 32, 32)
    with torch.no_grad():
        for parameter in model.momentum_projector[-1].parameters():
            parameter.add_(1.0)
    _, embedding, beside = model(views)
    assert beside.keys() == {"predictions", "targets"}
    assert {value.shape for value in beside.values()} == {(3, 5, 4)}
    assert not beside["targets"].requires_grad
    torch.testing.assert_close(beside["targets"], model.embed_by_branch(views))
    assert not torch.allclose(beside["targets"], embedding, atol=0.1)
    build_loss(config.loss)(embedding, **beside).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("momentum_")  # nothing else is unused


def test_steps_equal_a_plain_loop_in_float64(tiny: Make) -> None:
    """Loss, encoder, predictor and targets over 4 steps of SGD, the average by the formula."""
    config = tiny(**BYOL, model={"projector_layers": 1, "embedding_dim": 4})
    model, loss = built(config).double(), build_loss(config.loss)
    model.encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 16)).double()
    model.momentum_encoder = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(12, 16)
    ).double()
    model.momentum_encoder.load_state_dict(model.encoder.state_dict())
    model.momentum_encoder.requires_grad_(False)
    encoder, projector = model.encoder[1], model.projector[0]
    online = [
        p.detach().clone() for p in (*encoder.parameters(), *projector.parameters(),
                                     *model.predictor.parameters())
    ]  # fmt: skip
    target = [p.clone() for p in online[:4]]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    total = 4
    for step in range(total):
        views = torch.randn(2, 6, 3, 2, 2, generator=torch.Generator().manual_seed(step)).double()
        model.set_progress(step / total)
        optimizer.zero_grad()
        _, embedding, beside = model(views)
        value = loss(embedding, **beside)
        value.backward()
        optimizer.step()
        model.after_step()

        online = [p.detach().requires_grad_() for p in online]
        x = views.flatten(0, 1).flatten(1)
        z = (x @ online[0].T + online[1]) @ online[2].T + online[3]
        h = z @ online[4].T + online[5]
        h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt() * online[6] + online[7]
        p = h.clamp(min=0) @ online[8].T + online[9]
        t = (x @ target[0].T + target[1]) @ target[2].T + target[3]
        p, t = (y / y.square().sum(1, keepdim=True).sqrt() for y in (p, t))
        both = [2 - 2 * (p[:6] * t[6:]).sum(1), 2 - 2 * (p[6:] * t[:6]).sum(1)]
        want = torch.cat(both).mean()
        grads = torch.autograd.grad(want, online)
        online = [each.detach() - 0.5 * grad for each, grad in zip(online, grads, strict=True)]
        tau = 1 - (1 - 0.9) * (math.cos(math.pi * step / total) + 1) / 2
        target = [tau * k + (1 - tau) * q for k, q in zip(target, online[:4], strict=True)]

        torch.testing.assert_close(value, want, rtol=1e-6, atol=0)
        trained = [p for p in model.parameters() if p.requires_grad]
        for got, wanted in zip(trained, online, strict=True):
            torch.testing.assert_close(got.detach(), wanted, rtol=1e-6, atol=1e-9)
        copies = [*model.momentum_encoder.parameters(), *model.momentum_projector.parameters()]
        for got, wanted in zip(copies, target, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)
    assert (target[0] - online[0]).abs().max() > 1e-3
