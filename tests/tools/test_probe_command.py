"""tools/probe.py on anybody's checkpoint, and what it says to wrong input."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "data": {"name": "noise", "root": "images", "format": "imagefolder"},
    "image": {"size": 32},
    "knn": {"k": 1},
    "linear": {"epochs": 5},
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("probe")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write images, the same ones in both splits, of two classes, and a probe config."""
    for split in ("train", "val"):
        for label in range(2):
            place = tmp_path / "images" / split / str(label)
            place.mkdir(parents=True)
            for index in range(3):
                random = np.random.default_rng([label, index])
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    (tmp_path / "probe.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_somebodys_checkpoint_is_probed_as_it_was_trained(
    tool: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    moco = {f"module.encoder_q.{name}": value for name, value in state.items()}
    torch.save({"state_dict": moco, "arch": "resnet18"}, "moco.pth.tar")
    arguments = ["moco.pth.tar", "--config-file", "probe.yaml", "--output", "found.json"]
    assert tool.main(arguments) == 0
    found = json.loads(Path("found.json").read_text("utf-8"))
    assert found["metrics"]["knn/top1"] == 100.0  # every test image is in the bank
    assert found["config"]["knn"] == {"k": 1, "distance": "euclidean"}
    assert "linear" in capsys.readouterr().out
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*"))


def test_a_network_without_training_is_probed_by_name(
    tool: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["random:resnet18", "--config-file", "probe.yaml", "linear=null"]) == 0
    assert "100.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent.pth"], "absent.pth: no such checkpoint file"),
        (["probe.yaml"], "probe.yaml: "),
        (["random:vgg16"], "unknown architecture 'vgg16'; known: resnet18"),
        (["random:resnet18", "data.root=gone"], "gone: no such folder"),
        (["random:resnet18", "knn.k=7"], "images: 6 images are fewer than knn.k = 7"),
        (["random:resnet18", "knn.kk=7"], "probe.yaml: knn.kk: "),
        (["random:resnet18", "--output", "no/where.json"], "no: no such folder"),
        (["absent.pth", "--format", "moca"], "unknown format 'moca'"),
    ],
)
def test_wrong_input_is_told_in_one_line(
    tool: ModuleType,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    assert tool.main([*arguments, "--config-file", "probe.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and expected in captured.err
