"""Other spellings than the published ones: what is taken, and what is refused."""

from pathlib import Path

import pytest
import torch

from tests.transfer import published
from tests.transfer.checkpoints.reading import read, same
from tests.transfer.published import windows
from transfer.checkpoints.key_patterns import role, split, without_wrappers
from transfer.checkpoints.read import read_backbone

pytestmark = pytest.mark.usefixtures("windows_are_taken")


def test_names_of_each_spelling_by_hand() -> None:
    for spelling, name, parts in (
        ("detectron2", "net.stem.conv1.norm.bias", ("net.", "bn1.bias")),
        ("detectron2", "res3.0.conv2.weight", ("", "layer2.0.conv2.weight")),
        ("detectron2", "layer1.0.conv1.weight", None),
    ):
        assert split(spelling, name) == parts, name
    assert without_wrappers("layer1.module.0._orig_mod.conv1.weight") == "layer1.0.conv1.weight"
    assert role("module.net.backbone.") == "backbone"


def test_half_of_the_names_wrapped(tmp_path: Path) -> None:
    state = windows()
    for prefix in ("", "encoder_q."):
        mixed = {
            ("module." if index % 2 else "") + prefix + name: value
            for index, (name, value) in enumerate(state.items())
        }
        assert same(read({"state_dict": mixed}, tmp_path / "file").state_dict, state)
    stray = mixed | {"encoder_q.stray.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"1 extra \['stray.weight'\]"):
        read({"state_dict": stray}, tmp_path / "file")


def test_shortcut_for_downsample_with_a_stem_of_7x7(tmp_path: Path) -> None:
    state = windows()
    names = {name.replace("downsample", "shortcut"): value for name, value in state.items()}
    got = read({"state_dict": published.under("module.", names)}, tmp_path / "file")
    assert same(got.state_dict, state)
    with pytest.raises(ValueError, match="3x3 stem for small images"):
        read(names | {"conv1.weight": torch.ones(64, 3, 3, 3)}, tmp_path / "file")


WRAPPERS = ("module.", "_orig_mod.", "net.", "module._orig_mod.", "_orig_mod.module.",
            "net.module.", "module.net._orig_mod.", "module.module.")  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_in_any_order_and_place(wrapper: str, tmp_path: Path) -> None:
    state = windows()
    source = tmp_path / "file"
    for outer, inner in ((wrapper, ""), ("", wrapper), (wrapper, wrapper)):
        online = published.under(f"{outer}encoder_q.{inner}", state)
        momentum = published.under(f"{outer}encoder_k.{inner}", published.other(state))
        torch.save({"state_dict": momentum | online}, source)
        backbone = read_backbone(source)
        assert (backbone.format, backbone.arch) == ("moco", "resnet18")
        assert torch.equal(backbone.state_dict["bn1.bias"], state["bn1.bias"])
    torch.save(published.under(wrapper, state) | {f"{wrapper}fc.weight": torch.ones(2)}, source)
    assert read_backbone(source).state_dict.keys() == state.keys()
