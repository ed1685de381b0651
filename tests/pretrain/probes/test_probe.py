"""The stage `probe`: its numbers, resuming, and faults before the start."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.base import identity
from pretrain.config.probe import ProbeConfig
from pretrain.models import InputConvention
from pretrain.probes import features, probe
from pretrain.probes.features import (
    FrozenEncoder,
    open_labelled,
)
from pretrain.probes.knn import Neighbours
from pretrain.probes.linear import AugmentedTraining
from pretrain.probes.probe import (
    check_machine,
    check_stage,
    random_backbone,
    run_probe,
    run_stage,
    stage_precision,
)
from transfer.checkpoints.read import read_backbone

CPU = torch.device("cpu")


class MeanColour(nn.Module):
    """Its features are the mean colour: three classes that anybody tells apart."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.fixture
def mean_colour() -> FrozenEncoder:
    return FrozenEncoder(MeanColour(), InputConvention(), CPU)


def test_every_measure_tells_colours_apart(
    colours: Callable[..., ProbeConfig], mean_colour: FrozenEncoder
) -> None:
    config = colours(
        weighted_knn={"k": 5},
        linear={"epochs": 300, "lr": 0.1},
        augmented_linear={"optimizer": "sgd", "epochs": 8, "batch_size": 6, "lr_per_256": 20},
    )
    found = run_probe(mean_colour, config)
    assert found == {
        f"{name}/top1": 100.0 for name in ("knn", "weighted_knn", "linear", "augmented_linear")
    }


def test_labels_are_what_is_learnt(
    colours: Callable[..., ProbeConfig], mean_colour: FrozenEncoder, tmp_path: Path
) -> None:
    config = colours(linear={"epochs": 300, "lr": 0.1})
    val = tmp_path / "data" / "val"
    (val / "red").rename(val / "aside")
    (val / "green").rename(val / "red")
    (val / "aside").rename(val / "green")
    found = run_probe(mean_colour, config)
    assert found == {name: pytest.approx(100 / 3) for name in ("knn/top1", "linear/top1")}


def test_an_interrupted_classifier_goes_on_and_ends_the_same(
    colours: Callable[..., ProbeConfig], mean_colour: FrozenEncoder, tmp_path: Path
) -> None:
    short = {"optimizer": "lars", "epochs": 3, "batch_size": 5, "lr_per_256": 50}
    config = colours(augmented_linear=short)
    train = open_labelled(config.data, "train")
    whole = AugmentedTraining(mean_colour, train, 3, config).run()

    class KilledError(Exception):
        pass

    stopped = AugmentedTraining(mean_colour, train, 3, config)
    epoch_of = stopped._epoch

    def dying(epoch: int) -> float:
        if epoch == 2:
            raise KilledError
        return epoch_of(epoch)

    stopped._epoch = dying  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        stopped.run(tmp_path / "state.pth")
    again = AugmentedTraining(mean_colour, train, 3, config).run(tmp_path / "state.pth")
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias)
    mean_colour.tf32 = True
    with pytest.raises(ValueError, match="is of another probe or backbone"):
        AugmentedTraining(mean_colour, train, 3, config).run(tmp_path / "state.pth")
    mean_colour.tf32 = False
    other = colours(augmented_linear=short | {"epochs": 4})
    with pytest.raises(ValueError, match="is of another probe or backbone"):
        AugmentedTraining(mean_colour, train, 3, other).run(tmp_path / "state.pth")


def test_the_stage_writes_its_numbers(colours: Callable[..., ProbeConfig], tmp_path: Path) -> None:
    config = colours(random_arch="resnet18").model_dump(mode="json")
    assert check_stage(config) == []
    metrics = run_stage(config, {}, tmp_path)
    stored = json.loads((tmp_path / "probes.json").read_text("utf-8"))
    assert stored["metrics"] == metrics and metrics["knn/top1"] > 50
    encoder = random_backbone("resnet18", 0).encoder
    content = {
        "state_dict": encoder.state_dict(),
        "arch": "resnet18",
        "method": "w-mse",
        "input": {
            "format": "RGB",
            "pixel_mean": [123.675, 116.28, 103.53],
            "pixel_std": [58.395, 57.12, 57.375],
        },
    }
    folder = tmp_path / "convert"
    folder.mkdir()
    torch.save(content, folder / "backbone.pth")
    assert read_backbone(folder / "backbone.pth").arch == "resnet18"
    for result in ("backbone.pth", "backbone.pkl"):  # of pretraining, and of conversion
        assert run_stage(config, {"backbone": folder / result}, tmp_path) == metrics


def test_faults_are_found_before_the_start(
    colours: Callable[..., ProbeConfig], tmp_path: Path
) -> None:
    def faults(**changes: object) -> list[str]:
        return check_stage(colours(**changes).model_dump(mode="json"))

    data = tmp_path / "data"
    assert faults(knn={"k": 19}) == [f"{data}: 18 images are fewer than knn.k = 19"]
    (data / "train" / "red" / "0.png").write_bytes(b"no image")
    assert ["0.png: not a readable image" in fault for fault in faults()] == [True]
    unlabelled = {"name": "colours", "root": str(data), "format": "folder"}
    assert "has no labels" in faults(data=unlabelled)[0]
    (data / "val").rename(tmp_path / "gone")
    assert "wanted the test images there" in faults()[0]


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_the_encoder_alone_is_computed_in_tf32(
    precision: str,
    colours: Callable[..., ProbeConfig],
    mean_colour: FrozenEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = colours(precision=precision)
    assert (identity(config) == identity(colours())) == (precision == "float32")
    assert stage_precision(config.model_dump(mode="json")) == precision
    if precision == "tf32":
        with pytest.raises(ValueError, match=r"^precision tf32 needs a GPU; use float32 here$"):
            run_probe(mean_colour, config)
        assert check_machine(config.model_dump(mode="json")) != []
    monkeypatch.setattr(features, "tf32_faults", lambda *_: [])
    inside: set[bool] = set()
    outside: set[bool] = set()

    def noting(images: Tensor) -> Tensor:
        inside.add(torch.backends.cudnn.allow_tf32)
        return MeanColour.forward(mean_colour.encoder, images)  # type: ignore[arg-type]

    monkeypatch.setattr(mean_colour.encoder, "forward", noting)

    class Noting(Neighbours):
        def add(self, *chunk: Tensor) -> None:
            outside.add(torch.backends.cuda.matmul.allow_tf32)
            super().add(*chunk)

    monkeypatch.setattr(probe, "Neighbours", Noting)
    run_probe(mean_colour, config)
    assert inside == {precision == "tf32"} and outside == {False}
