"""SimSiam's model: what is predicted from what, whose gradient stops, and the predictor's rate."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import build_loss
from pretrain.methods import build_model
from pretrain.methods.simsiam import SimSiamModel
from pretrain.models import SelfSupervisedModel
from pretrain.runtime.distributed import Processes
from pretrain.training import Trainer

Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")
SIMSIAM = {
    "loss": {"name": "simsiam", "predictor_hidden": 3},
    "model": {"projector_hidden": 16, "embedding_dim": 4, "last_batchnorm": "plain"},
}


def built(config: PretrainConfig) -> SimSiamModel:
    torch.manual_seed(0)
    model = build_model(config).train()
    assert isinstance(model, SimSiamModel)
    return model


def test_the_predictor_is_called_once_over_all_views(tiny: Make) -> None:
    model, views = built(tiny(**SIMSIAM)), torch.randn(3, 5, 3, 32, 32)
    sizes: list[int] = []
    model.predictor.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    _, embedding, beside = model(views)
    assert sizes == [15] and beside.keys() == {"predictions"}
    torch.testing.assert_close(embedding.flatten(0, 1).mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    first, norm, _, last = model.predictor
    assert (first.in_features, first.out_features, last.out_features) == (4, 3, 4)
    hidden = batch_norm(first(embedding.flatten(0, 1)), None, None, training=True).relu()
    torch.testing.assert_close(beside["predictions"].flatten(0, 1), last(hidden))
    assert norm.num_batches_tracked == 1


def test_the_gradient_comes_through_the_predictor_alone(tiny: Make) -> None:
    config = tiny(**SIMSIAM)
    model, views = built(config), torch.randn(2, 5, 3, 32, 32)
    _, embedding, beside = model(views)
    embedding.retain_grad()
    loss = build_loss(config.loss)(embedding, **beside)
    loss.backward()
    through: Tensor = embedding.grad
    assert all(p.grad is not None for p in model.parameters())  # nothing is unused
    _, embedding, beside = built(config)(views)
    (alone,) = torch.autograd.grad(build_loss(config.loss)(embedding.detach(), **beside), embedding)
    torch.testing.assert_close(through, alone)
    assert through.abs().max() > 0


def test_encoder_and_projector_begin_as_without_a_predictor(tiny: Make) -> None:
    config = tiny(**SIMSIAM)
    state = built(config).state_dict()
    torch.manual_seed(0)
    for name, value in SelfSupervisedModel(config.model).state_dict().items():
        assert torch.equal(state[name], value)


@pytest.mark.parametrize("constant", [True, False])
def test_the_predictors_rate_stays_at_its_peak(tiny: Make, tmp_path: Path, constant: bool) -> None:
    loss = {**SIMSIAM["loss"], "constant_predictor_rate": constant}
    optimizer = {"name": "sgd", "lr_per_256": 3.2, "warmup_steps": 0, "schedule": "cosine"}
    config = tiny(**SIMSIAM | {"loss": loss}, optimizer=optimizer)
    trainer = Trainer(config, tmp_path, Processes(torch.device("cpu")))
    rates: dict[int, float] = {}
    for trainer.step in (0, 4):
        trainer._set_rates()
        for group in trainer.optimizer.param_groups:
            for parameter in group["params"]:
                rates[id(parameter)] = group["lr"]
        for name, parameter in trainer.model.named_parameters():
            falls = trainer.step == 4 and not (constant and name.startswith("predictor."))
            assert rates[id(parameter)] == pytest.approx(0.1 * (0.0954915 if falls else 1.0))
