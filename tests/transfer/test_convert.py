"""Conversion against detectron2's own loader, with negative controls that must fail."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from transfer import convert
from transfer.checkpoints.read import read_backbone
from transfer.convert import convert_checkpoint
from transfer.resnet.names import to_detectron2


def source_state(arch: str) -> dict[str, Tensor]:
    """Return a ResNet whose every entry differs from what a fresh network holds."""
    torch.manual_seed(1)
    model = torchvision.models.get_model(arch, weights=None)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, 64, 64) + 0.5)
        for name, value in model.named_parameters():
            if "bn" in name or "downsample.1" in name:
                value.add_(0.2 * torch.rand_like(value))
    return {name: v for name, v in model.state_dict().items() if not name.startswith("fc.")}


def save_backbone(path: Path, arch: str) -> Path:
    content = {
        "state_dict": source_state(arch),
        "arch": arch,
        "method": "test",
        "input": {"format": "RGB", "pixel_mean": [1.0, 2.0, 3.0], "pixel_std": [4.0, 5.0, 6.0]},
    }
    torch.save(content, path)
    return path


@pytest.mark.parametrize(("arch", "num_entries"), [("resnet18", 120), ("resnet50", 318)])
def test_features_are_equal_and_the_companion_says_so(
    tmp_path: Path, arch: str, num_entries: int
) -> None:
    source = save_backbone(tmp_path / "backbone.pth", arch)
    target = tmp_path / "out" / "weights.pkl"
    report = convert_checkpoint(source, target)
    assert 0 <= report.largest_feature_difference < 1e-5
    assert (report.arch, report.num_entries) == (arch, num_entries)
    assert report.format == "whitening-transfer"
    with target.open("rb") as file:
        content = pickle.load(file)
    assert content["matching_heuristics"] is True and "__author__" in content
    state = source_state(arch)
    assert len(content["model"]) == num_entries
    for name, value in state.items():
        assert torch.equal(torch.as_tensor(content["model"][to_detectron2(name)]), value)
    companion = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    assert companion["detectron2"]["MODEL.PIXEL_MEAN"] == [1.0, 2.0, 3.0]
    assert companion["detectron2"]["MODEL.RESNETS.DEPTH"] == int(arch.removeprefix("resnet"))
    assert sorted(path.name for path in target.parent.iterdir()) == ["weights.json", "weights.pkl"]


def test_the_stage_also_writes_the_weights_under_torchvisions_names(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "source", "resnet18")
    settings = {"format": None, "encoder": None, "checkpoint": str(source)}
    (tmp_path / "own").mkdir()
    convert.run_stage(settings, {}, tmp_path / "own")
    names = sorted(path.name for path in (tmp_path / "own").iterdir())
    assert names == ["backbone.json", "backbone.pkl", "backbone.pth"]
    plain = torch.load(tmp_path / "own" / "backbone.pth", weights_only=True)
    wanted = torch.load(source, weights_only=True)
    state, wanted_state = plain.pop("state_dict"), wanted.pop("state_dict")
    assert plain == wanted and list(state) == list(wanted_state)
    assert all(torch.equal(state[name], wanted_state[name]) for name in state)
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()}}, source)
    convert.run_stage(settings, {}, tmp_path / "own")
    plain = torch.load(tmp_path / "own" / "backbone.pth", weights_only=True)
    assert (plain["arch"], plain["method"]) == ("resnet18", "moco")
    assert plain["input"]["pixel_mean"] == [123.675, 116.28, 103.53]
    assert read_backbone(tmp_path / "own" / "backbone.pth").format == "whitening-transfer"


def swapped_blocks(name: str) -> str:
    """Exchange the norms of res3.0.conv1 and res3.1.conv1: same shapes, wrong places."""
    renamed = to_detectron2(name)
    swap = {"res3.0.conv1.norm": "res3.1.conv1.norm", "res3.1.conv1.norm": "res3.0.conv1.norm"}
    head, _, entry = renamed.rpartition(".")
    return f"{swap.get(head, head)}.{entry}"


@pytest.mark.parametrize(
    "broken",
    [
        swapped_blocks,
        lambda name: to_detectron2(name).replace("res5.0.shortcut", "res5.0.lost"),
        lambda name: to_detectron2(name).replace("stem.conv1.norm.running_mean", "lost"),
        lambda name: to_detectron2(name).replace("running_var", "lost_var"),
    ],
)
def test_a_conversion_with_one_step_wrong_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[str], str]
) -> None:
    source = save_backbone(tmp_path / "backbone.pth", "resnet18")
    target = tmp_path / "out" / "weights.pkl"
    monkeypatch.setattr(convert, "to_detectron2", broken)
    with pytest.raises(ValueError, match="converted features differ by"):
        convert_checkpoint(source, target)
    assert list(target.parent.iterdir()) == []


def scaled(state: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Return a network with its kernels and its norms' scales and shifts multiplied."""
    fixed = ("running", "tracked", "downsample")
    return {
        name: value if any(part in name for part in fixed) else value * factor
        for name, value in state.items()
    }


def test_features_beyond_float32_are_compared_in_float64_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = source_state("resnet18")
    torch.save(scaled(state, 1e3), tmp_path / "large")
    report = convert_checkpoint(tmp_path / "large", tmp_path / "large.pkl")
    assert report.verification["precision"] == "float64"
    assert report.notes == (
        "proved with FPN only: detectron2's C4 head takes ResNet-50 and deeper",
        "its features overflow float32, so they were compared in float64",
    )
    torch.save(scaled(state, 0), tmp_path / "zero")
    report = convert_checkpoint(tmp_path / "zero", tmp_path / "zero.pkl")
    assert report.verification["precision"] == "float32"
    assert report.notes[1] == "all zero on the test input, so not compared: res2"
    monkeypatch.setattr(convert, "to_detectron2", swapped_blocks)
    with pytest.raises(ValueError, match="converted features differ by"):
        convert_checkpoint(tmp_path / "large", tmp_path / "wrong.pkl")


def test_plain_torchvision_and_prefixed_files_are_read(tmp_path: Path) -> None:
    state = source_state("resnet18")
    torch.save(state | {"fc.weight": torch.zeros(3), "fc.bias": torch.zeros(3)}, tmp_path / "a.pth")
    plain = read_backbone(tmp_path / "a.pth")
    assert (plain.format, plain.arch, len(plain.state_dict)) == ("torchvision", "resnet18", 120)
    assert plain.input["pixel_mean"] == [123.675, 116.28, 103.53]
    prefixed = {f"module.encoder_q.{name}": value for name, value in state.items()}
    torch.save({"state_dict": prefixed, "epoch": 3}, tmp_path / "b.pth")
    chosen = read_backbone(tmp_path / "b.pth", encoder="module.encoder_q.")
    assert chosen.state_dict.keys() == state.keys()
    assert read_backbone(tmp_path / "b.pth").format == "moco"
    with pytest.raises(
        ValueError, match=r"no encoder under 'module\.enc'; found: module\.encoder_q"
    ):
        read_backbone(tmp_path / "b.pth", encoder="module.enc")


class Hostile:
    """Runs a command when it is unpickled by an ordinary unpickler."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch owned",)


def test_bad_files_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = source_state("resnet18")
    nan = {name: value.clone() for name, value in state.items()}
    nan["layer2.0.conv1.weight"][0] = float("nan")
    cases: dict[str, tuple[object, str]] = {
        "hostile.pth": (Hostile(), "cannot|can be read safely"),
        "empty.pth": (b"", "can be read safely"),
        "text.pth": (b"hello", "can be read safely"),
        "list.pth": ([1, 2], "holds a list"),
        "nothing.pth": ({"epoch": 3}, "no tensors"),
        "missing.pth": (
            {name: v for name, v in state.items() if name != "layer3.0.bn1.weight"},
            r"nearest is resnet18: 1 missing \['layer3.0.bn1.weight'\]",
        ),
        "nan.pth": (nan, "1 tensors hold NaN or infinity, first layer2.0.conv1.weight"),
    }
    for name, (content, expected) in cases.items():
        if isinstance(content, bytes):
            Path(name).write_bytes(content)
        else:
            torch.save(content, name)
        with pytest.raises(ValueError, match=expected) as caught:
            convert_checkpoint(Path(name), Path("out.pkl"))
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("owned").exists() and not Path("out.pkl").exists()
    with pytest.raises(ValueError, match="no such checkpoint"):
        convert_checkpoint(Path("absent.pth"), Path("out.pkl"))
    with pytest.raises(ValueError, match=r"ending in \.pkl"):
        convert_checkpoint(Path("nan.pth"), Path("out.pth"))


def test_the_companion_overwrites_neither_the_input_nor_a_strange_file(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "weights.json", "resnet18")
    whole = source.read_bytes()
    with pytest.raises(ValueError, match=r"weights\.json: is a folder or INPUT itself"):
        convert_checkpoint(source, tmp_path / "weights.pkl")
    assert source.read_bytes() == whole
    mine = tmp_path / "out.json"
    for text in ("mine", '{"sha256": "mine"}', "[" * 100_000):
        mine.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"out\.json: is there and is no companion"):
            convert_checkpoint(source, tmp_path / "out.pkl")
        assert mine.read_text(encoding="utf-8") == text
    assert not (tmp_path / "out.pkl").exists()


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "in", "resnet18")
    for place in ("in", "in/sub"):
        with pytest.raises(ValueError, match=r"/in: is a file, wanted a folder to write OUTPUT"):
            convert_checkpoint(source, tmp_path / place / "out.pkl")


def test_what_a_killed_run_left_does_not_disturb_the_next(tmp_path: Path) -> None:
    source, target = save_backbone(tmp_path / "in", "resnet18"), tmp_path / "out.pkl"
    for pid in (os.getpid(), 1):
        for suffix in ("pkl", "json"):
            (tmp_path / f".out.{pid}.tmp.{suffix}").write_text("half", encoding="utf-8")
    report = convert_checkpoint(source, target)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == report.output_sha256
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".out.1.tmp.json", ".out.1.tmp.pkl", "in", "out.json", "out.pkl"]


def test_an_older_output_stays_until_its_replacement_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = save_backbone(tmp_path / "backbone.pth", "resnet18"), tmp_path / "out.pkl"
    report = convert_checkpoint(source, target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    assert report.output_sha256 == digest
    assert json.loads(target.with_suffix(".json").read_text("utf-8"))["output_sha256"] == digest
    before = target.read_bytes(), target.with_suffix(".json").read_bytes()
    monkeypatch.setattr(convert, "MAX_RELATIVE_DIFFERENCE", -1.0)
    with pytest.raises(ValueError, match="nothing was written"):
        convert_checkpoint(source, target)
    assert (target.read_bytes(), target.with_suffix(".json").read_bytes()) == before
    monkeypatch.undo()

    def stop(self: Path, other: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(OSError, match="no space"):
        convert_checkpoint(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.pth", "out.json"]


RGB = {"format": "RGB", "pixel_mean": [1.0, 2, 3], "pixel_std": (4.0, 5.0, 6.0)}


def test_our_own_input_is_three_finite_keys_and_the_arch_is_true(tmp_path: Path) -> None:
    state, path = source_state("resnet18"), tmp_path / "own.pth"
    own = {"state_dict": state, "arch": "resnet18", "input": RGB | {"more": torch.float32}}
    torch.save(own, path)
    got = read_backbone(path).input
    assert got == {"format": "RGB", "pixel_mean": [1.0, 2.0, 3.0], "pixel_std": [4.0, 5.0, 6.0]}
    nan, infinite = float("nan"), float("inf")
    bad: list[dict[str, object]] = [
        {"pixel_mean": [nan] * 3}, {"pixel_std": [0, 0, 0]}, {"pixel_std": [-1, 1, 1]},
        {"pixel_std": [True] * 3}, {"pixel_std": [infinite] * 3}, {"format": ["RGB"]},
        {"pixel_mean": [10**400] * 3}, {"pixel_mean": [1, 2]},
    ]  # fmt: skip
    for change in bad:
        torch.save(own | {"input": RGB | change}, path)
        with pytest.raises(ValueError, match="its `input` is not"):
            read_backbone(path)
    for lie in ("resnet50", ["resnet18"], None):
        torch.save(own | {"arch": lie}, path)
        with pytest.raises(ValueError, match=r"it says that it is .*, its weights are resnet18's"):
            read_backbone(path)
    torch.save(own | {"input": "rgb"}, path)
    assert read_backbone(path).format != "whitening-transfer"
