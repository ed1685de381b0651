"""INTL's model with a momentum branch: which view goes where, and three steps of it in float64."""

import math
from collections.abc import Callable

import pytest
import torch

from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import build_loss
from pretrain.methods import build_model
from pretrain.methods.intl import INTLMomentumModel
from pretrain.models import SelfSupervisedModel
from tests.pretrain.losses.test_intl import plain

Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")
MOMENTUM = {"name": "intl", "momentum": 0.9}


def test_the_branch_is_there_where_a_momentum_is_given(tiny: Make) -> None:
    assert type(build_model(tiny(loss={"name": "intl"}))) is SelfSupervisedModel
    model = build_model(tiny(loss=MOMENTUM))
    assert type(model) is INTLMomentumModel and model.momentum == 0.9


@pytest.mark.parametrize("sizes", [(32, 32), (32, 32, 24, 16)])
def test_the_first_view_is_the_branchs_and_the_others_the_encoders(
    tiny: Make, sizes: tuple[int, ...]
) -> None:
    config = tiny(loss=MOMENTUM, num_views=len(sizes))
    model = build_model(config).train()
    assert isinstance(model, INTLMomentumModel)
    views = tuple(torch.randn(8, 3, side, side) for side in sizes)
    with torch.no_grad():
        for parameter in model.momentum_projector.parameters():
            parameter.mul_(-0.5)
    encoding, embedding, beside = model(views)
    assert encoding.shape[:2] == embedding.shape[:2] == (len(sizes) - 1, 8)
    assert beside.keys() == {"target"} and beside["target"].shape == (1, 8, 4)
    online = model.embed(model.encoder, model.projector, views[1:])[1]
    torch.testing.assert_close(embedding, online)
    torch.testing.assert_close(beside["target"], model.embed_by_branch(views[:1]))
    assert not beside["target"].requires_grad
    value = build_loss(config.loss)(embedding, **beside)
    torch.testing.assert_close(
        value, plain(torch.cat([beside["target"], online]), "channels", True)
    )
    value.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("momentum_")  # nothing else is unused


def test_steps_equal_a_plain_loop_in_float64(tiny: Make) -> None:
    """Loss, gradients and the average, whose momentum rises from 0.9 along half a cosine."""
    config = tiny(loss=MOMENTUM, model={"projector_layers": 1, "embedding_dim": 5}, num_views=3)
    torch.manual_seed(0)
    model, loss = build_model(config).double().train(), build_loss(config.loss)
    assert isinstance(model, INTLMomentumModel)
    model.encoder = model.momentum_encoder = torch.nn.Flatten()
    model.projector = torch.nn.Linear(12, 5).double()
    model.momentum_projector = torch.nn.Linear(12, 5).double().requires_grad_(False)
    model.momentum_projector.load_state_dict(model.projector.state_dict())
    online = [p.detach().clone() for p in model.projector.parameters()]
    target = [p.clone() for p in online]
    optimizer = torch.optim.SGD(model.projector.parameters(), lr=0.5)
    for step in range(3):
        views = torch.randn(3, 16, 3, 2, 2, generator=torch.Generator().manual_seed(step)).double()
        model.set_progress(step / 3)
        optimizer.zero_grad()
        _, embedding, beside = model(views)
        value = loss(embedding, **beside)
        value.backward()
        optimizer.step()
        model.after_step()

        online = [p.detach().requires_grad_() for p in online]
        x = views.flatten(2)
        z = torch.cat([x[:1] @ target[0].T + target[1], x[1:] @ online[0].T + online[1]])
        want = plain(z, "channels", momentum=True)
        grads = torch.autograd.grad(want, online)
        online = [p.detach() - 0.5 * grad for p, grad in zip(online, grads, strict=True)]
        m = 1 - (1 - 0.9) * (math.cos(math.pi * step / 3) + 1) / 2
        target = [m * k + (1 - m) * q for k, q in zip(target, online, strict=True)]
        torch.testing.assert_close(value, want, rtol=1e-6, atol=0)
        copies = (*model.projector.parameters(), *model.momentum_projector.parameters())
        for parameter, wanted in zip(copies, (*online, *target), strict=True):
            torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-6, atol=1e-9)
    assert (target[0] - online[0]).abs().max() > 1e-4
