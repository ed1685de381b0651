"""Names of ResNets: torchvision's and detectron2's map one to one, strangers are refused."""

import pytest
import torchvision

from transfer.resnet.names import BLOCKS, expected_names, to_detectron2

# Entry counts of published backbones, with and without num_batches_tracked.
COUNTS = {"resnet18": (120, 100), "resnet34": (216, 180), "resnet50": (318, 265),
          "resnet101": (624, 520), "resnet152": (930, 775)}  # fmt: skip


@pytest.mark.parametrize("arch", sorted(BLOCKS))
def test_expected_names_are_torchvisions_without_fc(arch: str) -> None:
    model = torchvision.models.get_model(arch, weights=None)
    names = {name for name in model.state_dict() if not name.startswith("fc.")}
    assert expected_names(arch) == names
    assert (len(names), len(expected_names(arch, counters=False))) == COUNTS[arch]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv2.weight", "res2.0.conv2.weight"),
        ("layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
        ("layer3.22.bn1.num_batches_tracked", "res4.22.conv1.norm.num_batches_tracked"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_mean", "res3.0.shortcut.norm.running_mean"),
    ],
)
def test_names_by_hand(ours: str, theirs: str) -> None:
    assert to_detectron2(ours) == theirs


@pytest.mark.parametrize("name", ["fc.weight", "layer1.0.downsample.2.weight", "xconv1.weight"])
def test_strangers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no such entry"):
        to_detectron2(name)


def test_names_map_one_to_one() -> None:
    names = expected_names("resnet152")
    assert len({to_detectron2(name) for name in names}) == len(names)
