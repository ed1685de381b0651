"""Backbone files: torchvision's names and features, stems, and files that are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.models.backbone_file import (
    BACKBONE,
    InputConvention,
    build_from,
    convention_of,
    is_backbone_file,
    read_backbone_file,
)
from pretrain.runtime.checkpoint import LAST
from pretrain.train import pretrain


def source(arch: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return torchvision's network without classifier, of statistics that matter, its weights."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(arch, weights=None)
    network.fc = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval(), network.state_dict()


@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d"]
)
def test_features_are_torchvisions(arch: str) -> None:
    network, weights = source(arch)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(build_from(weights)(images), network(images), atol=1e-5)


def test_caffes_stride_is_built_where_it_is_said() -> None:
    network, weights = source("resnet50")
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = network(images)
        assert torch.allclose(build_from(weights, stride_in_1x1=True)(images), wanted, atol=1e-5)
        assert not torch.allclose(build_from(weights)(images), wanted, atol=1e-2)


@pytest.mark.parametrize("maxpool", [True, False])
def test_small_stems(maxpool: bool) -> None:
    network, _ = source("resnet18")
    network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    if not maxpool:
        network.maxpool = nn.Identity()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = build_from(network.state_dict(), maxpool=maxpool)(images)
        assert torch.allclose(found, network(images), atol=1e-5)


def test_a_file_without_counters_is_whole_and_one_without_a_layer_is_not() -> None:
    network, weights = source("resnet18")
    counted = {name: value for name, value in weights.items() if "num_batches" not in name}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(build_from(counted)(images), network(images), atol=1e-5)
    del weights["layer3.0.bn1.running_mean"]
    with pytest.raises(ValueError, match=r"lacks \['layer3.0.bn1.running_mean'\]"):
        build_from(weights)
    with pytest.raises(ValueError, match=r"has besides \['fc.weight'\]"):
        build_from({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="not a ResNet under torchvision's names"):
        build_from({"stem.weight": torch.zeros(2)})


def test_a_files_convention_is_checked() -> None:
    stated = {"format": "BGR", "pixel_mean": [1, 2, 3], "pixel_std": [1.0, 1.0, 1.0]}
    assert convention_of(stated) == InputConvention("BGR", (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
    for change in ({"format": "GRB"}, {"pixel_std": [1, 1, 0]}, {"pixel_mean": [1, 2]}):
        with pytest.raises(ValueError, match="its `input` is not"):
            convention_of(stated | change)


def test_own_files_are_told_from_others(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no checkpoint", encoding="utf-8")
    for name in ("other.pth", "text.pth", "absent.pth"):
        assert not is_backbone_file(tmp_path / name)
        with pytest.raises(ValueError, match=name):
            read_backbone_file(tmp_path / name)


def test_backbone_file_has_torchvisions_names_and_the_input(
    tiny: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    pretrain(tiny(max_steps=1), tmp_path / "run")
    content = torch.load(tmp_path / "run" / BACKBONE, weights_only=True)
    assert set(content) == {"state_dict", "arch", "stem", "method", "input"}
    assert (content["arch"], content["method"]) == ("resnet18", "w-mse")
    assert content["stem"] == "imagenet"
    assert len(content["state_dict"]) == 120
    assert not any(name.startswith("fc") for name in content["state_dict"])
    assert content["input"]["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert content["input"]["pixel_std"] == pytest.approx([58.395, 57.12, 57.375])
    state = torch.load(tmp_path / "run" / LAST, weights_only=True)
    trained = {
        name.removeprefix("encoder."): value
        for name, value in state["model"].items()
        if name.startswith("encoder.")
    }
    assert content["state_dict"].keys() == trained.keys()
    assert all(torch.equal(content["state_dict"][name], trained[name]) for name in trained)
