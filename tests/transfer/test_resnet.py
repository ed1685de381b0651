"""Names, shapes and widths of ResNets, and entries of a backbone that arrived in a detector."""

from pathlib import Path

import pytest
import torch
import torchvision

from tests.transfer.published import windows
from transfer.checkpoints import Backbone
from transfer.convert import convert_checkpoint
from transfer.resnet import (
    BASIC,
    BLOCKS,
    Architecture,
    expected_names,
    not_loaded,
    recognise,
    to_detectron2,
)
from transfer.verify import c4_model

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


@pytest.mark.usefixtures("windows_are_taken")
@pytest.mark.parametrize(
    ("arch", "keys"),
    [
        ("resnet34", {"DEPTH": 34, "RES2_OUT_CHANNELS": 64}),
        ("resnet101", {"DEPTH": 101}),
        ("wide_resnet50_2", {"WIDTH_PER_GROUP": 128, "RES2_OUT_CHANNELS": 256}),
        ("resnext50_32x4d", {"WIDTH_PER_GROUP": 4, "NUM_GROUPS": 32}),
    ],
)
def test_depth_and_width_come_from_the_shapes(
    arch: str, keys: dict[str, int], tmp_path: Path
) -> None:
    source = tmp_path / "file"
    torch.save(windows(arch), source)
    report = convert_checkpoint(source, tmp_path / "out.pkl")
    assert report.arch == arch and report.largest_feature_difference < 1e-5
    for key, value in keys.items():
        assert report.detectron2[f"MODEL.RESNETS.{key}"] == value


@pytest.mark.usefixtures("windows_are_taken")
def test_twice_the_width_everywhere(tmp_path: Path) -> None:
    source = tmp_path / "file"
    torch.save(windows("resnet50", widened=2), source)
    report = convert_checkpoint(source, tmp_path / "out.pkl")
    assert report.arch == "resnet50_x2" and report.largest_feature_difference < 1e-5
    resnets = {key.split(".")[-1]: value for key, value in report.detectron2.items()}
    assert resnets["STEM_OUT_CHANNELS"] == resnets["WIDTH_PER_GROUP"] == 128
    assert (resnets["RES2_OUT_CHANNELS"], resnets["DEPTH"]) == (512, 50)


def basic(arch: str) -> Architecture:
    """Return torchvision's own widths."""
    return Architecture(arch, res2=64 if arch in BASIC else 256)


@pytest.mark.parametrize("arch", sorted(BLOCKS))
def test_a_complete_set_of_names_is_recognised_with_and_without_counters(arch: str) -> None:
    for counters in (True, False):
        names = expected_names(arch, counters)
        shapes = {name: basic(arch).shape(name) for name in names}
        assert recognise(shapes) == basic(arch)
        with pytest.raises(ValueError, match="1 missing"):
            recognise({name: shapes[name] for name in names if name != "bn1.weight"})


def test_config_keys_follow_the_architecture() -> None:
    pixel = {"format": "RGB", "pixel_mean": (1, 2, 3), "pixel_std": (4, 5, 6)}
    small, large = (
        Backbone({}, arch, "torchvision", input=pixel, architecture=basic(arch)).detectron2
        for arch in ("resnet34", "resnet50")
    )
    assert (small["MODEL.RESNETS.DEPTH"], small["MODEL.RESNETS.RES2_OUT_CHANNELS"]) == (34, 64)
    assert (large["MODEL.RESNETS.DEPTH"], large["MODEL.RESNETS.RES2_OUT_CHANNELS"]) == (50, 256)
    assert large["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    assert large["MODEL.PIXEL_STD"] == [4, 5, 6]


def test_what_the_checkpointer_leaves_out_is_seen() -> None:
    model = c4_model(Backbone(windows("resnet50"), "resnet50", "torchvision"))
    lost = not_loaded(model, {"stem.conv1.weight": torch.ones(1)})
    assert len(lost) == 265 and {"stem.conv1.weight", "res5.2.conv3.norm.bias"} <= set(lost)
