"""The network that conversions and exports are compared with, and differences of features."""

import math
from pathlib import Path

import pytest
import torch
import torchvision

from tests.transfer.published import save_backbone
from transfer.checkpoints.read import read_backbone
from transfer.features import STAGES, largest_difference, reference, torchvision_network
from transfer.resnet import Architecture


@pytest.mark.parametrize(("arch", "res2"), [("resnet18", 64), ("resnet50", 256)])
def test_the_network_compared_with_is_torchvisions(arch: str, res2: int) -> None:
    theirs = torchvision.models.get_model(arch).state_dict()
    ours = torchvision_network(Architecture(arch, res2=res2)).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }


def test_a_difference_is_of_the_largest_feature_of_its_stage(tmp_path: Path) -> None:
    backbone = read_backbone(save_backbone(tmp_path / "backbone.pth", "resnet18"))
    images, expected = reference(backbone)
    assert images.dtype == torch.float32 and list(expected) == list(STAGES)
    assert largest_difference(expected, expected) == 0
    got = {stage: value.clone() for stage, value in expected.items()}
    got["res4"][0, 0, 0, 0] += 0.5 * float(expected["res4"].abs().max())
    assert largest_difference(expected, got) == pytest.approx(0.5)
    got["res3"][0, 0, 0, 0] = math.nan
    assert math.isnan(largest_difference(expected, got))
