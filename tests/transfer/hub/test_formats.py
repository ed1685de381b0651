"""Names and configs of the formats, beside those of the libraries themselves."""

import pytest
import timm
import torch
import torchvision
from transformers import ResNetBackbone, ResNetConfig

from tests.transfer.published import resnet
from transfer.checkpoints.read import Backbone
from transfer.hub.formats import NAMES, configs, entries, format_fault, to_transformers
from transfer.resnet import BLOCKS, Architecture, ordered_names, recognise


def backbone(arch: str, **changes: object) -> Backbone:
    state = resnet(arch)
    built = recognise({name: tuple(value.shape) for name, value in state.items()})
    return Backbone(state, built.name, "torchvision", architecture=built, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_names_and_shapes_are_transformers_own(arch: str) -> None:
    config = configs(backbone(arch), "transformers")["config.json"]
    with torch.device("meta"):
        theirs = ResNetBackbone(ResNetConfig(**config)).state_dict()
    ours = entries(backbone(arch), "transformers")
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }


def test_a_name_of_no_backbone_is_refused() -> None:
    assert {to_transformers(name) for name in ordered_names("resnet152")}
    with pytest.raises(ValueError, match=r"fc\.weight: no such entry"):
        to_transformers("fc.weight")


def test_the_libraries_have_the_networks_that_are_said_to_be_theirs() -> None:
    assert set(NAMES["torchvision"]) <= set(torchvision.models.list_models())
    assert set(NAMES["timm"]) <= set(timm.list_models())
    assert set(BLOCKS) <= set(NAMES["timm"])


@pytest.mark.parametrize(
    ("built", "format", "expected"),
    [
        (Architecture("resnet50", 128, 128, 512), "timm", "timm has no resnet50_x2; it has resnet"),
        (Architecture("resnet50", 128, 128, 512), "transformers", None),
        (Architecture("resnet50", width=128), "transformers", "no wide 3x3 convolutions"),
        (Architecture("resnet101", width=128, groups=32), "torchvision", "no resnext101_32x4d"),
        (Architecture("resnet101", width=128, groups=32), "timm", None),
        (Architecture("resnet50", width=100, groups=2), "detectron2", None),
        (Architecture("resnet50", stride_in_1x1=True), "torchvision", "halve their map in the 1x1"),
        (Architecture("resnet18", 64, 64, 64), "transformers", None),
        (Architecture("resnet50", 256, 64, 256), "transformers", "no groups and no wide"),
    ],
)
def test_a_library_that_builds_no_such_network(
    built: Architecture, format: str, expected: str | None
) -> None:
    one = Backbone({}, built.name, "torchvision", architecture=built)
    fault = format_fault(one, format)
    assert (fault is None) if expected is None else expected in str(fault)


def test_tensors_lie_in_memory_of_their_own() -> None:
    """Counters that a reader filled in are one tensor in the source, which safetensors refuses."""
    count = torch.tensor(3)
    state = {name: count if name.endswith("tracked") else value
             for name, value in resnet().items()}  # fmt: skip
    made = entries(Backbone(state, "resnet18", "torchvision"), "timm")
    assert len({value.data_ptr() for value in made.values()}) == len(made)
