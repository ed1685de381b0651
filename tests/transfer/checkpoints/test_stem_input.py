"""The stem's statistics against photographs: which input fits, or silence."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.transfer import published
from transfer.checkpoints.families import CAFFE2_INPUT, IMAGENET_INPUT, UNIT_INPUT
from transfer.checkpoints.stem_input import INPUTS, distances, mismatch, patches
from transfer.config.convert import ConvertConfig
from transfer.convert import read_as_stated


def stem(seed: int) -> dict[str, Tensor]:
    """Return a stem with kernels as networks learn them: most answer to edges, some to colour."""
    generator = torch.Generator().manual_seed(seed)
    grey = torch.randn(64, 1, 7, 7, generator=generator).repeat(1, 3, 1, 1)
    kernels = grey + 0.3 * torch.randn(64, 3, 7, 7, generator=generator)
    kernels = torch.nn.functional.avg_pool2d(kernels, 3, 1, 1)
    kernels[16:] -= kernels[16:].mean((2, 3), keepdim=True)
    return {"conv1.weight": kernels}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", sorted(INPUTS))
def test_the_input_that_training_had_is_nearest(name: str, seed: int) -> None:
    state = stem(seed)
    state |= published.fed_with(state, INPUTS[name])
    far = distances(state, INPUTS)
    assert min(far, key=lambda one: far[one]) == name
    assert far[name] < math.log(1.3) and mismatch(state, INPUTS[name]) is None


def test_a_wrong_input_is_noted_with_the_one_that_fits() -> None:
    state = stem(3)
    caffe = state | published.fed_with(state, CAFFE2_INPUT)
    note = mismatch(caffe, IMAGENET_INPUT) or ""
    assert note.startswith("WARNING: bn1's running statistics do not fit the input assumed")
    assert "--input-order BGR --pixel-mean 103.53 116.28 123.675 --pixel-std 1 1 1" in note
    unit = state | published.fed_with(state, UNIT_INPUT)
    assert "pixels in [0, 1] would fit" in (mismatch(unit, IMAGENET_INPUT) or "")
    huge = unit | {"bn1.running_var": unit["bn1.running_var"] * 1e-8}
    assert "fit no usual input" in (mismatch(huge, UNIT_INPUT) or "")


def test_nothing_is_told_of_a_network_that_saw_no_images() -> None:
    fresh = {"bn1.running_mean": torch.zeros(64), "bn1.running_var": torch.ones(64)}
    assert distances(stem(0) | fresh, INPUTS) == {}
    dead = {"bn1.running_mean": torch.zeros(64), "bn1.running_var": torch.zeros(64)}
    assert mismatch(stem(0) | dead, UNIT_INPUT) is None
    mean, covariance = patches()
    assert mean.shape == (3, 49) and covariance.shape == (3, 49, 3, 49)


def test_a_statement_silences_the_warning_that_it_answers(tmp_path: Path) -> None:
    state = published.resnet("resnet50") | stem(0)
    torch.save(state | published.fed_with(state, CAFFE2_INPUT), tmp_path / "msra.pth")
    assert "WARNING" in read_as_stated(tmp_path / "msra.pth", ConvertConfig()).notes[0]
    fed = {"order": "BGR", "std": [1, 1, 1], "stride_in_1x1": True}
    stated = read_as_stated(tmp_path / "msra.pth", ConvertConfig.model_validate({"input": fed}))
    assert not any("WARNING" in note for note in stated.notes)
