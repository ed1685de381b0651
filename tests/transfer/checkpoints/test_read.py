"""A whole backbone: counters, input, and what a file says of itself."""

import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.transfer.checkpoints.reading import read, same
from tests.transfer.published import resnet, source_state
from transfer import checkpoints
from transfer.checkpoints import read as read_module
from transfer.checkpoints.read import read_backbone

COUNTERS = {
    "NaN": (torch.tensor(float("nan")), "nan of torch.float32"),
    "infinite": (torch.tensor(float("inf")), "inf of torch.float32"),
    "a fraction": (torch.tensor(2.5), "2.5 of torch.float32"),
    "negative": (torch.tensor(-3), "-3 of torch.int64"),
    "absurd": (torch.tensor(1e30), "1.0\\d+e\\+30 of torch.float32"),
}


@pytest.mark.parametrize("name", sorted(COUNTERS))
def test_a_counter_that_counts_nothing_is_refused(name: str, tmp_path: Path) -> None:
    value, shown = COUNTERS[name]
    with pytest.raises(ValueError, match=f"bn1.num_batches_tracked is no count: {shown}"):
        read(resnet() | {"bn1.num_batches_tracked": value}, tmp_path / "file")


def test_whole_counters_of_any_type_are_taken(tmp_path: Path) -> None:
    state = resnet()
    for value in (torch.tensor(3.0), torch.tensor([3], dtype=torch.int32), torch.tensor(3).half()):
        changed = {n: value if n.endswith("tracked") else v for n, v in state.items()}
        assert same(read(changed, tmp_path / "file").state_dict, state)


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
    assert read_backbone(str(tmp_path / "b.pth")).format == "moco"
    with pytest.raises(ValueError, match=f"{tmp_path}/c.pth: no such checkpoint file"):
        read_backbone(str(tmp_path / "c.pth"))
    with pytest.raises(
        ValueError, match=r"no encoder under 'module\.enc'; found: module\.encoder_q"
    ):
        read_backbone(tmp_path / "b.pth", encoder="module.enc")


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


def test_the_example_in_the_docstring() -> None:
    failed, attempted = doctest.testmod(read_module)
    assert failed == 0 and attempted > 3


def test_the_package_gives_it_without_importing_torch_for_the_table() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import transfer.checkpoints.families\n"
        "assert not hasattr(transfer.checkpoints, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert checkpoints.read_backbone is read_backbone


def test_a_file_that_is_cut_while_it_is_read_does_not_kill_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, path = source_state("resnet18"), tmp_path / "cut.pth"
    torch.save(state, path)
    recognise = read_module.recognise

    def cut(*arguments: Any) -> Any:
        with path.open("r+b") as file:
            file.truncate(4096)
        return recognise(*arguments)

    monkeypatch.setattr(read_module, "recognise", cut)
    assert same(read_backbone(path).state_dict, state)


@pytest.mark.parametrize(
    "text", ["{nonsense", "[1]", "version https://git-lfs", "[" * 10**5, "\xff"]
)
def test_settings_beside_weights_that_hold_none_are_noted(tmp_path: Path, text: str) -> None:
    torch.save(resnet(), tmp_path / "pytorch_model.bin")
    assert not any("beside it" in note for note in read_backbone(tmp_path).notes)
    (tmp_path / "config.json").write_text(text, "latin-1")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        assert "config.json beside it holds no settings: not used" in read_backbone(path).notes
