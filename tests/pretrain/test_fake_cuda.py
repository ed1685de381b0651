"""Losses, training steps, colours and probes on CUDA tensors without data: all on one device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from benchmarks.gpu_check.numerics import AUGMENTATIONS, LOSSES
from benchmarks.gpu_check.training import VARIANTS, digits_config
from pretrain.config.data import AugmentConfig
from pretrain.config.loss import loss_config
from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import LinearConfig
from pretrain.losses import build_loss
from pretrain.models import InputConvention
from pretrain.probes.features import FrozenEncoder
from pretrain.probes.knn import Neighbours
from pretrain.probes.linear import fit_linear
from pretrain.runtime.distributed import Processes
from pretrain.training import Trainer
from pretrain.views.batched import RawViews, finish_views
from pretrain.views.parameters import NUM_COLUMNS
from pretrain.whitening import whiten
from tests.fake_cuda import CUDA, backward, fake_cuda
from tests.pretrain.image_sets import save_png, some_pixels

pytestmark = pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"),
    reason="torch before 2.9 crashes where a node of its graph is called from Python",
)


def loss_of(settings: dict[str, Any], x: Tensor) -> Tensor:
    loss_fn = build_loss(loss_config(**settings)).to(x.device)
    loss: Tensor = loss_fn(x, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward(loss)
    return loss


@pytest.mark.parametrize("title", LOSSES)
def test_losses(title: str) -> None:
    settings, shape = LOSSES[title]
    with fake_cuda():
        x = torch.randn(shape, device=CUDA, requires_grad=True)
        loss = loss_of(settings, x)
        assert loss.device == CUDA and x.grad is not None
        assert x.grad.device == CUDA and x.grad.shape == x.shape


def test_a_tensor_left_on_the_cpu_is_told() -> None:
    with fake_cuda():
        layer = torch.nn.Linear(2, 2)
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            torch.ones(2, device=CUDA) + torch.ones(2)
        with pytest.raises(RuntimeError, match="cuda:0"):
            layer(torch.ones(1, 2, device=CUDA))
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            torch.ones(2)[torch.ones(2, dtype=int, device=CUDA)]
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            torch.equal(torch.ones(2), torch.ones(2, device=CUDA))
        with pytest.raises(RuntimeError, match="'cuda' generator"):
            torch.rand(2, device=CUDA, generator=torch.Generator())
        assert layer.to(CUDA)(torch.ones(1, 2, device=CUDA)).device == CUDA


def test_what_depends_on_values_takes_all_there_is() -> None:
    with fake_cuda():
        x = torch.tensor([[1.0, 0.0, 3.0]], device=CUDA)
        assert x.nonzero().shape == (3, 2) and x[x > 2].shape == (3,) and x[0].device == CUDA
        x[:, torch.arange(3) > 2] = 1
        assert nms(torch.ones(5, 4, device=CUDA), torch.ones(5, device=CUDA), 0.5).shape == (5,)
        with pytest.raises(RuntimeError, match="cuda:0"):
            nms(torch.ones(5, 4, device=CUDA), torch.ones(5), 0.5)


def test_gradients_are_those_of_torch() -> None:
    x, y = (torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    grads = []
    for engine in (torch.autograd.backward, backward):
        leaf = x.clone().requires_grad_()
        engine((whiten(leaf, over="batch", method="zca") * y + leaf.sum(0)).square().sum())
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("title", sorted(VARIANTS))
def test_training_steps(title: str, tmp_path: Path) -> None:
    for number, pixels in enumerate(some_pixels(64, 32)):
        save_png(tmp_path / "images" / f"{number}.png", pixels)
    config = digits_config(VARIANTS[title] | {"data": {"root": str(tmp_path / "images")}})
    N, sides = config.batch_size, config.view_sizes
    with fake_cuda():
        trainer = Trainer(config, tmp_path, Processes(CUDA))
        for _ in range(2):  # the second with the optimiser's state
            views = tuple(torch.randn(N, 3, side, side, device=CUDA) for side in sides)
            one_size = len(set(sides)) == 1
            output = trainer.gradients(trainer.model, torch.stack(views) if one_size else views)
            trainer.update()
        devices = {p.grad.device for p in trainer.model.parameters() if p.grad is not None}
        assert devices == {CUDA} == {output.loss.device, output.embedding.device}


STATES: dict[str, dict[str, Any]] = {
    "w-mse, adam": {},
    "simsiam, sgd": {"loss": {"name": "simsiam"}, "optimizer": {"name": "sgd", "lr": 0.1}},
    "byol, lars": {"loss": {"name": "byol"}, "optimizer": {"name": "lars", "lr": 0.1}},
    "moco-v2, adam": {"loss": {"name": "moco-v2", "queue": 32}},
}


def taken_step(trainer: Trainer) -> None:
    shape = (2, trainer.config.batch_size, 3, 32, 32)
    trainer.gradients(trainer.model, torch.randn(shape, device=trainer.processes.device))
    trainer.update()
    trainer.model.after_step()


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize("changes", STATES.values(), ids=STATES)
def test_a_state_of_a_cpu_goes_on(
    changes: dict[str, Any], tiny: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    config = tiny(**changes)
    of_cpu = Trainer(config, tmp_path, Processes(torch.device("cpu")))
    taken_step(of_cpu)
    state = of_cpu.state_dict()
    with fake_cuda():
        trainer = Trainer(config, tmp_path, Processes(CUDA))
        trainer.load_state_dict(state)
        taken_step(trainer)
        of_optimizer = [
            value
            for entry in trainer.optimizer.state.values()
            for value in entry.values()
            if isinstance(value, Tensor)
        ]
        assert len(of_optimizer) >= len(state["optimizer"]["state"]) > 0
        tensors = [*trainer.model.state_dict().values(), *trainer.loss.buffers(), *of_optimizer]
        assert {tensor.device for tensor in tensors} == {CUDA}


@pytest.mark.parametrize("title", sorted(AUGMENTATIONS))
def test_colours(title: str) -> None:
    config = AugmentConfig.model_validate(AUGMENTATIONS[title])
    with fake_cuda():
        views = torch.zeros(2, 8, 3, config.size, config.size, dtype=torch.uint8, device=CUDA)
        noise = torch.zeros(views.shape, device=CUDA) if config.noise_std else None
        finished = finish_views(RawViews(views, torch.ones(2, 8, NUM_COLUMNS), noise), config)
        assert finished.device == CUDA and finished.shape == views.shape


def test_probes() -> None:
    with fake_cuda():
        bank, labels = torch.randn(64, 16, device=CUDA), torch.zeros(64, dtype=int, device=CUDA)
        search = Neighbours(bank, 5)
        search.add(bank, labels)
        assert {found.device for found in search.nearest()} == {CUDA}
        classifier = fit_linear(bank, labels, 10, LinearConfig(epochs=1), 0)
        assert classifier(bank).device == CUDA


def test_features_of_a_frozen_encoder() -> None:
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1))
    with fake_cuda():
        frozen = FrozenEncoder(encoder, InputConvention("BGR"), CUDA)
        features = frozen.features(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
        assert features.device == CUDA and features.shape == (4, 5)
