"""Every published form, with its exact names: recognised, the right encoder taken, converted."""

import json
import pickle
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from tests.scripts import load_script
from tests.transfer import published
from transfer.checkpoints import read
from transfer.checkpoints.families import is_copy
from transfer.checkpoints.read import read_backbone
from transfer.resnet.names import to_detectron2

command = load_script("convert_to_detectron2")


@pytest.fixture(autouse=True)
def windows_on_one_run_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take ResNet-50's as `weights` makes them, whose tensors lie on top of each other."""
    monkeypatch.setattr(read, "SHARED_BYTES", 2**27)


@cache
def weights(arch: str) -> dict[str, Tensor]:
    """Return a network whose every entry differs from every other's.

    ResNet-50's are windows on one run of numbers, so that files of it are small; ResNet-18's are
    fit for computing with.
    """
    with torch.device("meta"):
        names = torchvision.models.get_model(arch, weights=None).state_dict()
    generator = torch.Generator().manual_seed(0)
    run = torch.rand(512 * 512 * 9 + len(names), generator=generator)
    state = {}
    for index, (name, value) in enumerate(names.items()):
        if name.startswith("fc."):
            continue
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif arch == "resnet50":
            state[name] = run[index : index + value.numel()].view(value.shape)
        elif value.ndim == 1:
            state[name] = 0.5 + torch.rand(value.shape, generator=generator)
        else:
            scale = (2 / value[0].numel()) ** 0.5
            state[name] = scale * torch.randn(value.shape, generator=generator)
    return state


FORMS = [(name, "resnet18") for name in published.files({})] + [
    (name, "resnet50") for name in {**published.files({}), **published.bottleneck_files({})}
]


def save(content: object, path: Path, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def form(name: str, arch: str) -> tuple[str, str, object]:
    state = weights(arch)
    return {**published.files(state), **published.bottleneck_files(state)}[name]


def holds(got: dict[str, Tensor], wanted: dict[str, Tensor], num: int) -> None:
    counters = sum(name.endswith("num_batches_tracked") for name in wanted)
    assert len(got) in (num, num - counters)
    for name, value in got.items():
        zeroed = name.endswith("tracked") and int(value) == 0
        assert zeroed or torch.equal(value, wanted[name]), name


@pytest.mark.parametrize(("name", "arch"), FORMS)
def test_every_form_is_recognised_and_the_right_encoder_taken(
    name: str, arch: str, tmp_path: Path
) -> None:
    family, encoder, content = form(name, arch)
    backbone = read_backbone(save(content, tmp_path / "file.bin"))
    assert (backbone.format, backbone.arch) == (family, arch)
    assert backbone.encoder.rstrip(".").endswith(encoder.rstrip("."))
    holds(backbone.state_dict, weights(arch), {"resnet18": 120, "resnet50": 318}[arch])
    mean = {"simclr-v1": 0.0, "simclr-v2": 0.0, "caffe2": 103.53}.get(family, 123.675)
    assert backbone.input["pixel_mean"][0] == mean
    assert backbone.detectron2["MODEL.RESNETS.STRIDE_IN_1X1"] is (family == "caffe2")


BOTTLENECKS = ["caffe2", "simclr-v2", "classyvision", "hugging-face", "byol-deepmind"]


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_tables_of_bottleneck_names_give_the_same_features(name: str, tmp_path: Path) -> None:
    state = {}
    for key, value in weights("resnet50").items():
        scale = (6 / value[0].numel()) ** 0.5 if value.ndim > 1 else 1.0
        state[key] = (value - 0.5 * (value.ndim > 1)) * scale if value.ndim else value
    content = {**published.files(state), **published.bottleneck_files(state)}[name][2]
    source, target = tmp_path / "weights", tmp_path / "out.pkl"
    if name == "byol-deepmind":
        source.write_bytes(pickle.dumps(content))
    else:
        save(content, source)
    assert command.main([str(source), str(target)]) == 0
    report = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    assert report["family"] == name
    num_entries = 265 if name in ("caffe2", "byol-deepmind") else 318
    assert report["verification"]["entries_loaded"] == {"fpn": num_entries, "c4": num_entries}
    assert report["largest_feature_difference"] < 1e-5
    assert report["input"]["format"] == ("BGR" if name == "caffe2" else "RGB")
    with target.open("rb") as file:
        model = pickle.load(file)["model"]
    assert len(model) == num_entries
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
    assert companion["family"] == family and companion["num_entries"] == 120
    assert companion["verification"]["entries_loaded"] == {"fpn": 120}
    with target.open("rb") as file:
        model = pickle.load(file)["model"]
    wanted = weights("resnet18")
    for key, value in wanted.items():
        if not key.endswith("tracked"):
            assert torch.equal(torch.as_tensor(model[to_detectron2(key)]), value), key


def test_counters_tell_simclr_only_where_there_are_some(tmp_path: Path) -> None:
    state = weights("resnet18")
    zero = {key: value * 0 if key.endswith("tracked") else value for key, value in state.items()}
    none = {key: value for key, value in state.items() if not key.endswith("tracked")}
    fc = published.head("fc.weight", "fc.bias")
    source = save({"state_dict": none | fc}, tmp_path / "file")
    old = read_backbone(source)
    assert (old.format, old.input["pixel_mean"][0], old.notes) == ("torchvision", 123.675, ())
    save(zero | fc, source)
    flat = read_backbone(source)
    assert flat.format == "torchvision" and "no batch was counted" in flat.notes[0]
    assert "--format simclr-v1" in flat.notes[0]
    save({"state_dict": zero | fc}, source)
    assert read_backbone(source).format == "simclr-v1"


def test_wrappers_inside_numbered_names(tmp_path: Path) -> None:
    state = weights("resnet18")
    names = {name: value for name, value in published.sequential(state).items()}
    wrapped = {
        name.replace("4.0.", "4.module.0._orig_mod.").replace("1.weight", "1.module.weight"): value
        for name, value in names.items()
    }
    source = save({"state_dict": published.under("backbone.", wrapped)}, tmp_path / "file")
    holds(read_backbone(source).state_dict, state, 120)


def test_a_copy_differs_in_one_part_of_its_path() -> None:
    assert is_copy("a.momentum_encoder.b", "a.encoder.b")
    assert not is_copy("a.encoder.b", "a.momentum_encoder.b")
    assert not is_copy("c.momentum_encoder.b", "a.encoder.b")
    assert not is_copy("momentum_encoder", "encoder.b")
    assert not is_copy("encoder", "encoder")
