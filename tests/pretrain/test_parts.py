"""Views, models and schedules: shapes, statistics and values worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pretrain.augment import build_view
from pretrain.config import AugmentConfig, ModelConfig, OptimizerConfig, PretrainConfig
from pretrain.data import ViewsDataset, epoch_order
from pretrain.images import open_images
from pretrain.models import SelfSupervisedModel
from pretrain.schedule import lr_factor

PLAIN = AugmentConfig(
    size=8, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter_probability=0, grayscale=0
)


def test_a_view_without_randomness_is_the_normalised_image() -> None:
    image = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    view = build_view(PLAIN)(image)
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    assert view.shape == (3, 8, 8) and view.dtype == torch.float32
    assert torch.allclose(view, expected.view(3, 1, 1).expand(3, 8, 8))


def test_grayscale_blur_noise_and_rotation_do_what_they_say() -> None:
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    unit = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    gray = build_view(PLAIN.model_copy(update={"grayscale": 1.0, **unit}))(image)
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray[1], gray[2])
    noisy = [
        build_view(PLAIN.model_copy(update={"noise_std": 0.1, **unit}))(image) for _ in range(50)
    ]
    assert float(torch.stack(noisy).std(0).mean()) == pytest.approx(0.1, rel=0.1)
    sharp = build_view(PLAIN.model_copy(update=unit))(image)
    blurred = build_view(
        PLAIN.model_copy(update={"blur_probability": 1.0, "blur_sigma": (2.0, 2.0), **unit})
    )
    assert float(blurred(image).std()) < 0.9 * float(sharp.std())
    turned = build_view(PLAIN.model_copy(update={"rotation_degrees": 45.0, **unit}))(image)
    assert float(turned[:, 0, 0].sum()) != float(sharp[:, 0, 0].sum())


def test_views_of_an_item_differ_and_are_reproducible(
    tiny: Callable[..., PretrainConfig],
) -> None:
    config = tiny()
    images = open_images(config.data)
    data = ViewsDataset(images, build_view(config.augment), num_views=3, seed=0)
    before = torch.get_rng_state()
    first = data[0, 4]
    assert first.shape == (3, 3, 32, 32)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, data[0, 4])
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, data[1, 4])


def test_an_epoch_visits_every_image_once_in_its_own_order() -> None:
    assert sorted(epoch_order(50, 0, 0)) == list(range(50))
    assert epoch_order(50, 0, 0) == epoch_order(50, 0, 0)
    assert epoch_order(50, 0, 0) != epoch_order(50, 0, 1)
    assert epoch_order(50, 0, 0) != epoch_order(50, 1, 0)


def test_encoder_sees_one_view_and_projector_all_views_at_a_time() -> None:
    model = SelfSupervisedModel(ModelConfig(projector_hidden=16, embedding_dim=4))
    seen: dict[str, list[int]] = {"encoder": [], "projector": []}
    for name, sizes in seen.items():
        part = getattr(model, name)
        part.register_forward_pre_hook(lambda _, x, sizes=sizes: sizes.append(len(x[0])))
    encoding, embedding = model(torch.randn(3, 5, 3, 32, 32))
    assert seen == {"encoder": [5, 5, 5], "projector": [15]}
    assert encoding.shape == (3, 5, 512) and embedding.shape == (3, 5, 4)


def test_projector_ends_in_a_linear_layer_without_batch_norm() -> None:
    model = SelfSupervisedModel(ModelConfig(projector_layers=3, projector_hidden=16))
    kinds = [type(layer) for layer in model.projector]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear]
    assert model.projector[-1].out_features == 64


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_zero_init_residual_is_torchvisions(arch: str) -> None:
    def last_norm(zero: bool) -> Tensor:
        config = ModelConfig.model_validate({"arch": arch, "zero_init_residual": zero})
        block = SelfSupervisedModel(config).encoder.layer1[0]
        norm: Tensor = (block.bn3 if hasattr(block, "bn3") else block.bn2).weight.detach()
        return norm

    assert float(last_norm(True).abs().max()) == 0
    assert float(last_norm(False).min()) == 1


def test_schedules_by_hand() -> None:
    cosine = OptimizerConfig(lr=1.0, warmup_steps=4, schedule="cosine")
    assert [lr_factor(step, 12, cosine) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(4, 12, cosine) == 1.0
    assert lr_factor(8, 12, cosine) == pytest.approx(0.5)
    assert lr_factor(10, 12, cosine) == pytest.approx((1 + math.cos(0.75 * math.pi)) / 2)
    steps = OptimizerConfig(lr=1.0, warmup_steps=0, schedule="step", drop_at=(0.95, 0.975))
    factors = [lr_factor(step, 1000, steps) for step in (949, 950, 974, 975)]
    assert factors == pytest.approx([1.0, 0.2, 0.2, 0.04])
    constant = OptimizerConfig(lr=1.0, warmup_steps=0, schedule="constant")
    assert lr_factor(11, 12, constant) == 1.0


def test_learning_rate_is_given_once_and_scales_with_the_batch() -> None:
    assert OptimizerConfig(lr_per_256=0.05).base_lr(512) == pytest.approx(0.1)
    assert OptimizerConfig(lr=0.003).base_lr(512) == 0.003
    for both in ({}, {"lr": 1.0, "lr_per_256": 1.0}):
        with pytest.raises(ValidationError, match="exactly one of lr and lr_per_256"):
            OptimizerConfig.model_validate(both)
