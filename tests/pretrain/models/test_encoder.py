"""Encoder and projector: shapes, stems, and what BatchNorm sees."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from pretrain.config.base import identity
from pretrain.config.pretrain import ModelConfig
from pretrain.models import SelfSupervisedModel

V, N = 3, 5


class OneNorm(nn.Module):
    """An encoder that is one BatchNorm over mean colours: [N, 3, H, W] -> [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=0.5)

    def forward(self, images: Tensor) -> Tensor:
        normalised: Tensor = self.norm(images.mean((2, 3)))
        return normalised


def small_model(mode: str) -> SelfSupervisedModel:
    config = {"projector_hidden": 4, "embedding_dim": 2, "encoder_batchnorm": mode}
    model = SelfSupervisedModel(ModelConfig.model_validate(config))
    model.encoder = OneNorm()
    model.projector[0] = nn.Linear(3, 4)
    return model


@pytest.mark.parametrize("mode", ["per-view", "all-views"])
def test_batch_norm_sees_a_view_in_the_encoder_and_all_in_the_projector(mode: str) -> None:
    torch.manual_seed(0)
    model, views = small_model(mode), torch.randn(V, N, 3, 2, 2)
    encoding, embedding, _ = model(views)
    colours = views.mean((3, 4)).double()
    dims = 1 if mode == "per-view" else (0, 1)
    mean, variance = colours.mean(dims, keepdim=True), colours.var(dims, correction=0, keepdim=True)
    by_hand = (colours - mean) / (variance + 1e-5).sqrt()
    assert torch.allclose(encoding.double(), by_hand, atol=1e-6)
    running = torch.zeros(3, dtype=torch.float64)
    for own in mean.view(-1, 3):  # momentum 0.5, once per call
        running = 0.5 * running + 0.5 * own
    assert isinstance(model.encoder, OneNorm)
    assert model.encoder.norm.running_mean is not None
    assert torch.allclose(model.encoder.norm.running_mean.double(), running, atol=1e-6)
    first, _, _, last = model.projector
    hidden = batch_norm(first(encoding.flatten(0, 1)), None, None, training=True).relu()
    assert torch.allclose(embedding.flatten(0, 1), last(hidden), atol=1e-6)


@pytest.mark.parametrize("mode", ["per-view", "all-views"])
def test_views_of_other_sizes_are_normalised_apart(mode: str) -> None:
    torch.manual_seed(0)
    model, sides = small_model(mode), (4, 4, 2, 4)
    views = tuple(torch.randn(N, 3, side, side) for side in sides)
    encoding, embedding = model(views)[:2]
    assert encoding.shape == (4, N, 3) and embedding.shape == (4, N, 2)
    alone, again = small_model(mode), []
    for run in (views[:2], views[2:3], views[3:]):  # those of one size that follow each other
        again.append(alone(torch.stack(run)).encoding)
    torch.testing.assert_close(encoding, torch.cat(again), rtol=0, atol=1e-6)
    assert isinstance(model.encoder, OneNorm) and isinstance(alone.encoder, OneNorm)
    torch.testing.assert_close(model.encoder.norm.running_mean, alone.encoder.norm.running_mean)
    assert model.encoder.norm.num_batches_tracked == (4 if mode == "per-view" else 3)


def test_the_published_way_is_the_default() -> None:
    model = SelfSupervisedModel(ModelConfig(projector_hidden=16, embedding_dim=4))
    seen: dict[str, list[int]] = {"encoder": [], "projector": []}
    for name, sizes in seen.items():
        part = getattr(model, name)
        part.register_forward_pre_hook(lambda _, x, sizes=sizes: sizes.append(len(x[0])))
    encoding, embedding, _ = model(torch.randn(V, N, 3, 32, 32))
    assert seen == {"encoder": [N, N, N], "projector": [V * N]}
    assert encoding.shape == (V, N, 512) and embedding.shape == (V, N, 4)


def test_projector_ends_in_a_linear_layer_without_batch_norm() -> None:
    model = SelfSupervisedModel(ModelConfig(projector_layers=3, projector_hidden=16))
    kinds = [type(layer) for layer in model.projector]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear]
    assert model.projector[-1].out_features == 64


@pytest.mark.parametrize(
    ("settings", "kinds", "parameters"),
    [
        ({"hidden_batchnorm": False}, "Linear ReLU Linear ReLU Linear", 6),  # MoCo v2
        ({"last_batchnorm": "plain"}, "Linear BatchNorm1d ReLU " * 2 + "Linear BatchNorm1d", 9),
        ({"last_batchnorm": "affine"}, "Linear BatchNorm1d ReLU " * 2 + "Linear BatchNorm1d", 11),
    ],
)
def test_projectors_with_other_norms(
    settings: dict[str, object], kinds: str, parameters: int
) -> None:
    shape = {"projector_layers": 3, "projector_hidden": 16, "embedding_dim": 4}
    config = ModelConfig.model_validate(shape | settings)
    projector = SelfSupervisedModel(config).projector
    assert [type(layer).__name__ for layer in projector] == kinds.split()
    assert len(list(projector.parameters())) == parameters
    assert identity(config).keys() - identity(ModelConfig.model_validate(shape)) == settings.keys()
    if "last_batchnorm" in settings:
        embedding = projector(torch.randn(N, 512))
        torch.testing.assert_close(embedding.mean(0), torch.zeros(4), rtol=0, atol=1e-6)
        assert projector[-2].bias is None


@pytest.mark.parametrize(
    ("stem", "kernel", "sides"),
    [("imagenet", 7, (16, 8, 1)), ("small", 3, (32, 16, 2)), ("small-no-pool", 3, (32, 32, 4))],
)
def test_stems_by_the_size_of_their_maps(stem: str, kernel: int, sides: tuple[int, ...]) -> None:
    encoder = SelfSupervisedModel(ModelConfig.model_validate({"stem": stem})).encoder.eval()
    found: list[int] = []
    for name in ("conv1", "layer1", "layer4"):
        part = encoder.get_submodule(name)
        part.register_forward_hook(lambda _, __, output: found.append(output.shape[-1]))
    encoder(torch.randn(1, 3, 32, 32))
    assert tuple(found) == sides
    weight = encoder.get_submodule("conv1").weight
    assert weight.shape == (64, 3, kernel, kernel)
    assert "conv1.bias" not in encoder.state_dict() and len(encoder.state_dict()) == 120


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_zero_init_residual_is_torchvisions(arch: str) -> None:
    def last_norm(zero: bool) -> Tensor:
        config = ModelConfig.model_validate({"arch": arch, "zero_init_residual": zero})
        block = SelfSupervisedModel(config).encoder.get_submodule("layer1.0")
        norm = block.bn3 if hasattr(block, "bn3") else block.bn2
        weight: Tensor = norm.weight.detach()
        return weight

    assert float(last_norm(True).abs().max()) == 0
    assert float(last_norm(False).min()) == 1
