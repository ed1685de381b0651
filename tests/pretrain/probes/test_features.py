"""Features of a frozen encoder: its input, and nothing else changed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.probe import ImageConfig, ProbeConfig
from pretrain.models import InputConvention
from pretrain.probes.features import (
    FrozenEncoder,
    central_view,
    feature_chunks,
    open_labelled,
)
from pretrain.probes.probe import joined, random_backbone, run_probe

CPU = torch.device("cpu")


def test_the_encoder_gets_the_input_it_was_trained_with() -> None:
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    bgr = InputConvention("BGR", (1.0, 2.0, 3.0), (1.0, 1.0, 9.0))
    normalised = FrozenEncoder(nn.Flatten(), bgr, CPU).normalise(pixels)
    assert normalised.flatten().tolist() == [29.0, 18.0, pytest.approx(7 / 9)]
    unit = InputConvention("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
    normalised = FrozenEncoder(nn.Flatten(), unit, CPU).normalise(pixels)
    assert torch.allclose(normalised.flatten() * 255, torch.tensor([10.0, 20.0, 30.0]))


def test_the_middle_of_the_image_is_shown() -> None:
    image = torch.zeros(3, 12, 20, dtype=torch.uint8)
    image[:, 2:10, 6:14] = 255
    assert bool((central_view(ImageConfig(size=8, resize=12))(image) == 255).all())
    assert central_view(ImageConfig(size=6))(image).shape == (3, 6, 6)
    exact = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert torch.equal(central_view(ImageConfig(size=8))(exact), exact)


def test_features_leave_modes_statistics_and_random_state_alone(
    colours: Callable[..., ProbeConfig],
) -> None:
    config = colours()
    backbone = random_backbone("resnet18", 0)
    before = {name: value.clone() for name, value in backbone.encoder.state_dict().items()}
    state = torch.get_rng_state()
    features, labels = joined(feature_chunks(backbone, open_labelled(config.data, "test"), config))
    assert features.shape == (12, 512) and labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in backbone.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    alone = backbone.features(  # evaluation mode: what else is in the batch does not matter
        torch.stack([central_view(config.image)(open_labelled(config.data, "test").item(5)[0])])
    )
    assert torch.allclose(alone[0], features[5], atol=1e-4)


def test_broken_features_are_no_result(colours: Callable[..., ProbeConfig]) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) / 0

    with pytest.raises(ValueError, match="features are NaN or infinite"):
        run_probe(FrozenEncoder(Broken(), InputConvention(), CPU), colours())
