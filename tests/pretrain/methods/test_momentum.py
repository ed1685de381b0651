"""The momentum branch: its schedule, its step by hand, and what it must not touch."""

import math

import pytest
import torch
from torch import nn

from pretrain.config.pretrain import ModelConfig
from pretrain.methods.momentum import MomentumModel
from pretrain.models import SelfSupervisedModel

pytestmark = pytest.mark.usefixtures("small_net")
CONFIG = ModelConfig(projector_hidden=6, embedding_dim=4)
V, N = 3, 5


def model(first_momentum: float = 0.9, *, rises: bool = True) -> MomentumModel:
    torch.manual_seed(0)
    return MomentumModel(CONFIG, first_momentum, rises=rises)


def move(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            if parameter.requires_grad:
                parameter.add_(by * (number + 1))


@pytest.mark.parametrize("first", [0.99, 0.996, 0.0, 1.0])
@pytest.mark.parametrize("total", [1, 7, 300])
def test_the_momentum_rises_to_1_along_half_a_cosine(first: float, total: int) -> None:
    """As the paper has it: 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2."""
    branch = model(first)
    for step in {0, 1 % total, total // 2, total - 1}:
        branch.set_progress(step / total)
        want = 1 - (1 - first) * (math.cos(math.pi * step / total) + 1) / 2
        assert branch.momentum == pytest.approx(want, abs=1e-15)
        assert first <= branch.momentum <= 1
    branch.set_progress(0.0)
    assert branch.momentum == pytest.approx(first)
    constant = model(first, rises=False)
    constant.set_progress(0.7)
    assert constant.momentum == first


def test_a_step_by_hand() -> None:
    """k <- m k + (1 - m) q from equal weights that q leaves by d: k moves by (1 - m) d."""
    branch = model(0.75)
    before = {name: value.double() for name, value in branch.state_dict().items()}
    move(branch, 0.5)
    branch.after_step()
    after = {name: value.clone() for name, value in branch.state_dict().items()}
    moved = 0
    for number, (name, _) in enumerate(SelfSupervisedModel(CONFIG).named_parameters(), start=1):
        want = before[name] + 0.25 * 0.5 * number
        torch.testing.assert_close(after[f"momentum_{name}"].double(), want, rtol=0, atol=1e-6)
        torch.testing.assert_close(after[name].double() - before[name], 4 * (want - before[name]))
        moved += 1
    assert moved == 14
    branch.set_progress(1 - 1e-12)
    move(branch, 100.0)
    branch.after_step()
    for name, value in branch.state_dict().items():
        assert torch.equal(value, after[name]) == (
            name.startswith("momentum_") or "running" in name or "num_" in name
        )


def test_many_steps_are_a_float64_average() -> None:
    branch, total = model(0.8), 20
    average = branch.projector[0].weight.detach().double()
    for step in range(total):
        branch.set_progress(step / total)
        with torch.no_grad():
            branch.projector[0].weight += 0.1 * torch.randn(6, 16)
        branch.after_step()
        m = 1 - 0.2 * (math.cos(math.pi * step / total) + 1) / 2
        average = m * average + (1 - m) * branch.projector[0].weight.detach().double()
    got = branch.momentum_projector[0].weight.double()
    torch.testing.assert_close(got, average, rtol=0, atol=1e-6)
    assert (got - branch.projector[0].weight).abs().max() > 0.05


def test_the_branch_begins_as_a_copy_and_draws_nothing() -> None:
    branch = model()
    after = torch.rand(3)
    torch.manual_seed(0)
    plain = SelfSupervisedModel(CONFIG)
    assert torch.equal(torch.rand(3), after)
    state = branch.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(state[name], value) and torch.equal(state[f"momentum_{name}"], value)
        assert state[name].data_ptr() != state[f"momentum_{name}"].data_ptr()
    assert len(state) == 2 * len(plain.state_dict())
    trained = [name for name, value in branch.named_parameters() if value.requires_grad]
    assert trained == [name for name, _ in plain.named_parameters()]
    assert list(branch.encoders()) == [branch.encoder, branch.momentum_encoder]


def test_its_norms_see_the_batch_and_keep_running_statistics_of_their_own() -> None:
    branch = model().train()
    views = torch.randn(V, N, 3, 32, 32)
    embedded = branch.embed_by_branch(views)
    assert not embedded.requires_grad and embedded.shape == (V, N, 4)
    online = branch.encoder[1].running_mean
    assert torch.equal(online, torch.zeros(8))
    assert branch.momentum_encoder[1].running_mean.abs().max() > 0
    torch.testing.assert_close(branch(views).embedding, embedded)  # still equal weights
    torch.testing.assert_close(branch.momentum_encoder[1].running_mean, online)
    shifted = branch.embed_by_branch(views + 1.0)  # which statistics of the batch take away
    branch.momentum_encoder.eval()
    assert not torch.allclose(branch.embed_by_branch(views + 1.0), shifted, atol=0.01)


@pytest.mark.parametrize("change", ["channels_last", "sync_batchnorm"])
def test_pairs_hold_after_the_model_was_prepared(change: str) -> None:
    prepared, plain = model(0.5), model(0.5)
    if change == "channels_last":
        prepared.to(memory_format=torch.channels_last)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(prepared)
        kinds = [type(module) for module in prepared.momentum_encoder]
        assert kinds.count(nn.SyncBatchNorm) == 2
    for each in (prepared, plain):
        move(each, 0.25)
        each.after_step()
    assert prepared.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(prepared.state_dict()[name], value)
    assert not any(p.requires_grad for p in prepared.momentum_encoder.parameters())
