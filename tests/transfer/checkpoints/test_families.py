"""Every published form, with its exact names: recognised, the right encoder taken, converted."""

import json
import pickle
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.scripts import load_script
from tests.transfer import published
from transfer.checkpoints import encoders
from transfer.checkpoints.families import (
    CAFFE2_INPUT,
    FAMILIES,
    IMAGENET_INPUT,
    UNIT_INPUT,
    Family,
    is_copy,
)
from transfer.checkpoints.read import read_backbone
from transfer.resnet import to_detectron2

command = load_script("convert_to_detectron2")


pytestmark = pytest.mark.usefixtures("windows_are_taken")
weights = published.windows


FORMS = [(name, arch) for arch in ("resnet18", "resnet50") for name in published.forms({}, arch)]


def save(content: object, path: Path, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@cache
def forms(arch: str) -> dict[str, tuple[str, str, Any]]:
    return published.forms(weights(arch), arch)


def form(name: str, arch: str) -> tuple[str, str, Any]:
    return forms(arch)[name]


INPUTS = {family.name: family.input or IMAGENET_INPUT for family in FAMILIES}


@pytest.mark.parametrize(
    "stated", [{"order": "BGR", "mean": [1, 2, 3]}, UNIT_INPUT | {"std": [1, 2, 3]}]
)
def test_a_row_with_another_input_than_the_three_keys_is_told(
    stated: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Family("mine", ("trunk",), marks=("their_head",), input=stated)
    monkeypatch.setattr(encoders, "FAMILIES", (row, *FAMILIES))
    content = published.under("trunk.", weights("resnet18")) | published.head("their_head.weight")
    source = save(content, tmp_path / "file")
    wanted = "{format: RGB or BGR, pixel_mean: [3], pixel_std: [3]}, finite numbers"
    with pytest.raises(ValueError, match=re.escape(wanted)) as caught:
        read_backbone(source)
    keys = ", ".join(stated)
    assert f"`input` of family 'mine' in families.py (keys {keys}) is not" in str(caught.value)


def has_counters(content: object) -> bool:
    if isinstance(content, Tensor):
        return content.ndim == 0 and not content.is_floating_point()
    return isinstance(content, dict) and any(map(has_counters, content.values()))


def num_entries(content: object, wanted: dict[str, Tensor]) -> int:
    """Return the entries of a form: without counters of batches where it has none."""
    counters = sum(name.endswith("tracked") for name in wanted)
    return len(wanted) - (0 if has_counters(content) else counters)


def holds(got: dict[str, Tensor], wanted: dict[str, Tensor], content: object) -> None:
    assert len(got) == num_entries(content, wanted)
    for name, value in got.items():
        zeroed = name.endswith("tracked") and int(value) == 0
        assert zeroed or torch.equal(value, wanted[name]), name


@pytest.mark.parametrize(("name", "arch"), FORMS)
def test_every_form_is_recognised_and_the_right_encoder_taken(
    name: str, arch: str, tmp_path: Path
) -> None:
    family, encoder, content = form(name, arch)
    backbone = read_backbone(save(content, tmp_path / "file.bin"))
    got, entry = (backbone.format, backbone.arch), (family, arch)
    assert got == entry, f"{name}: got {got}, the entry says {entry}"
    got_encoder, got_input = backbone.encoder, backbone.input  # a failed assert prints no tensors
    is_right = got_encoder.rstrip(".").endswith(encoder.rstrip("."))
    assert is_right, f"{name}: got encoder {got_encoder!r}, the entry says {encoder!r}"
    wanted = weights(arch)
    if family == "simclr-v1":
        wanted = wanted | published.fed_with(wanted, UNIT_INPUT)
    holds(backbone.state_dict, wanted, content)
    assert got_input == INPUTS[family]
    assert backbone.detectron2["MODEL.RESNETS.STRIDE_IN_1X1"] is (family == "caffe2")


BOTTLENECKS = ["caffe2", "simclr-v2", "classyvision", "hugging-face", "byol-deepmind"]


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_tables_of_bottleneck_names_give_the_same_features(name: str, tmp_path: Path) -> None:
    state, content = weights("resnet50"), form(name, "resnet50")[2]
    source, target = tmp_path / "weights", tmp_path / "out.pkl"
    if name == "byol-deepmind":
        source.write_bytes(pickle.dumps(content))
    else:
        save(content, source)
    assert command.main([str(source), str(target)]) == 0
    report = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    assert report["family"] == name
    num = num_entries(content, state)
    assert report["verification"]["entries_loaded"] == {"fpn": num, "c4": num}
    assert report["largest_feature_difference"] < 1e-5
    assert report["input"] == INPUTS[name]
    with target.open("rb") as file:
        model = pickle.load(file)["model"]
    assert len(model) == num
    for key, value in state.items():
        if not key.endswith("tracked"):
            assert torch.equal(torch.as_tensor(model[to_detectron2(key)]), value), key


class Exclude:
    """Stands for a class of somebody's script, and is pickled under that script's name."""


def test_names_of_classes_are_listed_in_the_companion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Exclude.__module__, Exclude.__qualname__ = "__main__", "exclude_bias_and_norm"
    monkeypatch.setattr(sys.modules["__main__"], "exclude_bias_and_norm", Exclude, raising=False)
    content = form("vicreg-full", "resnet18")[2]
    assert isinstance(content, dict)
    content = content | {"optimizer": {"filter": Exclude, "made": Exclude()}}
    source, target = save(content, tmp_path / "weights"), tmp_path / "out.pkl"
    assert command.main([str(source), str(target)]) == 0
    assert "unknown, not loaded: __main__.exclude_bias_and_norm" in capsys.readouterr().out
    companion = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    assert companion["unknown_references"] == ["__main__.exclude_bias_and_norm"]


@pytest.mark.parametrize("name", [name for name, arch in FORMS if arch == "resnet18"])
def test_the_command_converts_every_form(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, _, content = form(name, "resnet18")
    source, target = save(content, tmp_path / "weights"), tmp_path / "out.pkl"
    assert command.main([str(source), str(target)]) == 0, capsys.readouterr().err
    companion = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    num = num_entries(content, weights("resnet18"))
    assert companion["family"] == family and companion["num_entries"] == num
    assert companion["verification"]["entries_loaded"] == {"fpn": num}
    with target.open("rb") as file:
        model = pickle.load(file)["model"]
    wanted = weights("resnet18")
    if family == "simclr-v1":
        wanted = wanted | published.fed_with(wanted, UNIT_INPUT)
    for key, value in wanted.items():
        if not key.endswith("tracked"):
            assert torch.equal(torch.as_tensor(model[to_detectron2(key)]), value), key


def test_the_stems_statistics_tell_simclr_and_not_counters_alone(tmp_path: Path) -> None:
    state = weights("resnet18")
    zero = {key: value * 0 if key.endswith("tracked") else value for key, value in state.items()}
    fc = published.head("fc.weight", "fc.bias")
    unit = zero | published.fed_with(state, UNIT_INPUT) | fc
    source = save({"state_dict": unit}, tmp_path / "file")
    assert read_backbone(source).format == "simclr-v1"
    for fed in (IMAGENET_INPUT, CAFFE2_INPUT):  # from Keras or Caffe, no batch counted either
        save({"state_dict": zero | published.fed_with(state, fed) | fc}, source)
        other = read_backbone(source)
        assert (other.format, other.input["pixel_mean"][0]) == ("torchvision", 123.675)
        assert read_backbone(source, format="simclr-v1").input["pixel_std"] == [255.0] * 3
    fresh = {"bn1.running_mean": torch.zeros(64), "bn1.running_var": torch.ones(64)}
    save({"state_dict": zero | fresh | fc}, source)
    assert read_backbone(source).format == "torchvision"
    save(unit, source)
    assert read_backbone(source).format == "torchvision"


SUPERVISED = {
    "self.model": lambda s: published.under("model.", s),
    "self.model in DDP": lambda s: published.training(
        published.under("module.model.", s) | published.head("module.fc.weight")),
    "a U-Net": lambda s: {"model": published.under("encoder.", s)
                          | published.head("decoder.0.weight")},
    "mmpretrain": lambda s: {"meta": {"mmcls_version": "1"}, "state_dict":
                             published.under("backbone.", s) | published.head("head.fc.weight")},
    "mmdet": lambda s: {"meta": {}, "message_hub": {}, "state_dict":
                        published.under("backbone.", s) | published.head("neck.conv.weight")},
    "Lightning, self.model": lambda s: published.lightning(published.under("model.", s)),
    "Lightning, self.backbone": lambda s: published.lightning(
        published.under("backbone.", s) | published.head("classifier.weight")),
    "Lightning, self.encoder": lambda s: published.lightning(
        published.under("encoder.", s) | published.head("projection.weight", "head.weight")),
    "a sequential classifier": lambda s: {"model": published.under("0.", s)
                                          | published.head("1.weight")},
    "a mean teacher": lambda s: {"teacher": s, "student": published.other(s)},
    "backbone and projector": lambda s: {"model": published.under("backbone.", s)
                                         | published.head("projector.weight")},
    "somebody's encoder": lambda s: {"state_dict": published.under("encoder.", s)
                                     | published.head("predictor.weight", "proj.weight")},
    "somebody's backbone": lambda s: {"state_dict": published.under("backbone.", s)
                                      | published.head("projection.weight")},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SUPERVISED))
def test_a_family_is_named_only_by_a_mark_of_its_own(name: str, tmp_path: Path) -> None:
    content = SUPERVISED[name](weights("resnet18"))
    source = save(content, tmp_path / "file")
    backbone = read_backbone(source)
    assert (backbone.format, backbone.method) == ("unlisted", "unlisted")
    holds(backbone.state_dict, weights("resnet18"), content)
    assert read_backbone(source, encoder=backbone.encoder).format == "unlisted"


def test_wrappers_inside_numbered_names(tmp_path: Path) -> None:
    state = weights("resnet18")
    names = {name: value for name, value in published.sequential(state).items()}
    wrapped = {
        name.replace("4.0.", "4.module.0._orig_mod.").replace("1.weight", "1.module.weight"): value
        for name, value in names.items()
    }
    source = save({"state_dict": published.under("backbone.", wrapped)}, tmp_path / "file")
    holds(read_backbone(source).state_dict, state, state)


def test_a_copy_differs_in_one_part_of_its_path() -> None:
    assert is_copy("a.momentum_encoder.b", "a.encoder.b")
    assert not is_copy("a.encoder.b", "a.momentum_encoder.b")
    assert not is_copy("c.momentum_encoder.b", "a.encoder.b")
    assert not is_copy("momentum_encoder", "encoder.b")
    assert not is_copy("encoder", "encoder")
