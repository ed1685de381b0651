"""Features before and after conversion, with negative controls that must fail."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.transfer.published import save_backbone, source_state
from transfer import convert
from transfer.checkpoints.read import read_backbone
from transfer.convert import convert_checkpoint
from transfer.resnet import to_detectron2
from transfer.verify import fpn_model


def swapped_blocks(name: str) -> str:
    """Exchange the norms of res3.0.conv1 and res3.1.conv1: same shapes, wrong places."""
    renamed = to_detectron2(name)
    swap = {"res3.0.conv1.norm": "res3.1.conv1.norm", "res3.1.conv1.norm": "res3.0.conv1.norm"}
    head, _, entry = renamed.rpartition(".")
    return f"{swap.get(head, head)}.{entry}"


def test_a_detector_shows_what_no_file_filled(tmp_path: Path) -> None:
    model = fpn_model(read_backbone(save_backbone(tmp_path / "backbone.pth", "resnet18")))
    for name, value in model.state_dict().items():
        assert bool((value.isnan() if value.is_floating_point() else value == -1).all()), name


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
    assert "WARNING: bn1's running statistics" in report.notes[0]  # its numbers fit no input
    assert report.notes[1:] == (
        "proved with FPN only: detectron2's C4 head takes ResNet-50 and deeper",
        "its features overflow float32, so they were compared in float64",
    )
    torch.save(scaled(state, 0), tmp_path / "zero")
    report = convert_checkpoint(tmp_path / "zero", tmp_path / "zero.pkl")
    assert report.verification["precision"] == "float32"
    assert "all zero on the test input, so not compared: res2" in report.notes
    monkeypatch.setattr(convert, "to_detectron2", swapped_blocks)
    with pytest.raises(ValueError, match="converted features differ by"):
        convert_checkpoint(tmp_path / "large", tmp_path / "wrong.pkl")
