"""The probe during training: it changes nothing of the run, and names faults of its data."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter

from pretrain.config.pretrain import PretrainConfig, TrainingProbeConfig
from pretrain.models import BACKBONE, SelfSupervisedModel
from pretrain.probes.features import FrozenEncoder, open_labelled
from pretrain.probes.online import TrainingProbe, divided, evenly
from pretrain.runtime.checkpoint import LAST
from pretrain.runtime.signals import EXIT_INTERRUPTED, StopRequest
from pretrain.runtime.tf32 import set_tf32
from pretrain.train import check_stage, pretrain
from pretrain.training.metrics import METRICS
from pretrain.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("small_net")


@pytest.fixture
def labelled(tmp_path: Path) -> dict[str, object]:
    """Write 12 + 6 images of two classes, bright and dark; return the data config."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("val", 3)):
        for name, level in (("bright", 200), ("dark", 40)):
            folder = tmp_path / "labelled" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = int(torch.randint(-30, 31, (), generator=generator))
                Image.new("RGB", (32, 32), (level + noise,) * 3).save(folder / f"{index}.png")
    return {"name": "levels", "root": tmp_path / "labelled", "format": "imagefolder"}


def test_a_compiled_encoder_is_measured_as_it_is(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object]
) -> None:
    config, compiler = tiny(probe={"every_epochs": 1, "data": labelled, "k": 3}), CompileCounter()
    assert config.probe is not None
    encoder = SelfSupervisedModel(config.model).encoder
    encoder.compile(backend=compiler)
    TrainingProbe(config, config.probe).measure(encoder, StopRequest())
    assert compiler.frame_count == 0


@pytest.mark.parametrize(("given", "shown"), [({}, 24), ({"size": 40}, 40)])
def test_images_are_shown_in_the_size_of_the_largest_view_unless_told(
    tiny: Callable[..., PretrainConfig],
    labelled: dict[str, object],
    given: dict[str, int],
    shown: int,
) -> None:
    augment = {"size": 224, "views": [{"size": 16}, {"size": 24}]}
    probe = {"every_epochs": 1, "data": labelled, "k": 3, **given}
    config = tiny(augment=augment, probe=probe)
    assert config.probe is not None
    assert TrainingProbe(config, config.probe).config.image.size == shown


def test_every_image_votes_or_an_even_part_of_them(labelled: dict[str, object]) -> None:
    data = TrainingProbeConfig.model_validate({"every_epochs": 1, "data": labelled}).data
    assert data is not None
    images = open_labelled(data, "train")
    assert evenly(images, 12) is images
    assert evenly(images, 4).numbers.tolist() == [0, 3, 6, 9]
    assert [int(evenly(images, 4).item(i)[1]) for i in range(4)] == [0, 0, 1, 1]


def test_an_encoder_is_left_as_it_was(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object]
) -> None:
    config = tiny(probe={"every_epochs": 1, "data": labelled, "k": 3})
    assert config.probe is not None
    model = SelfSupervisedModel(config.model).train()
    model.encoder.get_submodule("1").eval()  # as somebody may freeze a part
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = TrainingProbe(config, config.probe).measure(model.encoder, StopRequest())
    assert found == {"knn/top1": 100.0}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_probe_in_float32_leaves_a_training_its_tf32(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object]
) -> None:
    settings = {"every_epochs": 1, "data": labelled, "k": 3}
    config = tiny(probe=settings, compute={"precision": "tf32"})
    assert config.probe is not None
    model, seen = SelfSupervisedModel(config.model), set()
    first = next(model.encoder.children())
    first.register_forward_hook(lambda *_: seen.add(torch.backends.cuda.matmul.allow_tf32))
    set_tf32(True)
    try:
        TrainingProbe(config, config.probe).measure(model.encoder, StopRequest())
        assert seen == {False} and torch.backends.cuda.matmul.allow_tf32
    finally:
        set_tf32(False)


def test_a_probed_run_ends_with_the_weights_of_one_that_is_not(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object], tmp_path: Path
) -> None:
    section = {"every_epochs": 2, "data": labelled, "k": 3}
    changes = {
        "epochs": 5,
        "max_steps": None,
        "model": {"projector_hidden": 16, "embedding_dim": 16},
        "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2},  # it draws on random states
    }
    plain = pretrain(tiny(**changes), tmp_path / "plain")
    probed = pretrain(tiny(**changes, probe=section), tmp_path / "probed")
    states = [torch.load(tmp_path / name / LAST, weights_only=True) for name in ("plain", "probed")]
    assert states[0]["step"] == 10
    for key in ("optimizer", "ranks"):  # momenta, and all random states
        assert repr(states[0][key]) == repr(states[1][key])
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    entries = [json.loads(line) for line in (tmp_path / "probed" / METRICS).open()]
    found = {entry["step"]: entry["knn/top1"] for entry in entries if "knn/top1" in entry}
    assert found == {4: 100.0, 8: 100.0, 10: 100.0}  # after epochs 2 and 4 of 2 steps, and the end
    assert all(entry["max_steps"] == 10 for entry in entries)  # what shows progress reads it
    assert plain["loss"] == probed["loss"]


@pytest.mark.parametrize("every", [1, 2, 9])
@pytest.mark.parametrize("steps", [2, 3])
def test_the_finished_encoder_is_always_probed_and_once(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object], tmp_path: Path,
    every: int, steps: int,
) -> None:  # fmt: skip
    """An epoch has two steps: the end of one or its middle, one that is probed or another."""
    config = tiny(max_steps=steps, probe={"every_epochs": every, "data": labelled, "k": 3})
    metrics = pretrain(config, tmp_path)
    assert metrics["knn/top1"] == 100.0 and "loss" in metrics
    assert probed_steps(tmp_path) == ([2] if every == 1 and steps == 3 else []) + [steps]
    assert pretrain(config, tmp_path) == metrics
    assert probed_steps(tmp_path)[-2:] == probed_steps(tmp_path)  # nothing was measured again


def probed_steps(folder: Path) -> list[int]:
    entries = [json.loads(line) for line in (folder / METRICS).open()]
    return [entry["step"] for entry in entries if "knn/top1" in entry]


def test_a_run_that_was_stopped_in_its_last_probe_ends_with_it(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    original = FrozenEncoder.features

    def features(self: FrozenEncoder, images: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, images)

    config = tiny(max_steps=2, probe={"every_epochs": 9, "data": labelled, "k": 3})
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(FrozenEncoder, "features", features)
        pretrain(config, tmp_path)
    assert stopped.value.code == EXIT_INTERRUPTED and not (tmp_path / BACKBONE).exists()
    assert torch.load(tmp_path / LAST, weights_only=True)["step"] == 2
    assert pretrain(config, tmp_path)["knn/top1"] == 100.0
    assert (tmp_path / BACKBONE).exists() and probed_steps(tmp_path) == [2]


def test_one_folder_of_classes_is_divided(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object], tmp_path: Path
) -> None:
    """A part of each class is tested, the same every time, and no image is its own neighbour."""
    one_folder = labelled | {"root": tmp_path / "labelled" / "train"}
    (tmp_path / "labelled" / "train" / "single").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "labelled" / "train" / "single" / "0.png")
    section = {"every_epochs": 1, "data": one_folder, "k": 3}
    config = tiny(max_steps=2, probe=section | {"test_fraction": 0.3})
    assert config.probe is not None
    probe = TrainingProbe(config, config.probe)
    assert [len(probe.train), len(probe.test)] == [13 - 4, 4]  # round(0.3 x 6) of two classes
    numbers = [probe.train.numbers.tolist(), probe.test.numbers.tolist()]
    assert sorted(numbers[0] + numbers[1]) == list(range(13))
    assert {int(probe.test.item(i)[1]) for i in range(4)} == {0, 1}  # of the third there is one
    again = TrainingProbe(config, config.probe)
    assert again.test.numbers.tolist() == numbers[1]
    assert pretrain(config, tmp_path / "run")["knn/top1"] == 100.0
    whole = tiny(probe=section)
    assert check_stage(whole.model_dump(mode="json")) == [
        f"probe: {tmp_path / 'labelled' / 'train'}: no folder val or test; wanted the test images "
        "there (a probe during training can test a part of train instead: probe.test_fraction)"
    ]


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.5, 3), (0.99, 5)])
def test_of_every_class_some_images_are_left_on_both_sides(
    labelled: dict[str, object], fraction: float, count: int
) -> None:
    data = TrainingProbeConfig.model_validate({"every_epochs": 1, "data": labelled}).data
    assert data is not None
    neighbours, tested = divided(open_labelled(data, "train"), fraction)
    for images, number in ((neighbours, 6 - count), (tested, count)):
        labels = [int(images.item(i)[1]) for i in range(len(images))]
        assert [labels.count(0), labels.count(1)] == [number, number]
    with pytest.raises(ValueError, match="none of 2 images has another of its class"):
        divided(neighbours.part(torch.tensor([0, len(neighbours) - 1])), fraction)


def test_the_check_before_the_start_names_faults_of_the_probe(
    tiny: Callable[..., PretrainConfig],
) -> None:
    config = tiny(probe={"every_epochs": 1})
    (fault,) = check_stage(config.model_dump(mode="json"))
    assert fault.startswith("probe: ") and "has no labels" in fault


def test_faults_name_the_data(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object]
) -> None:
    for probe, expected in (
        ({"data": labelled, "k": 13}, "12 images are fewer than probe.k = 13"),
        ({}, "format 'folder' has no labels"),
    ):
        config = tiny(probe=probe | {"every_epochs": 1})
        assert config.probe is not None
        with pytest.raises(ValueError, match=expected):
            TrainingProbe(config, config.probe)


@pytest.mark.parametrize("when", ["in the probe", "in the step before"])
def test_a_probe_that_was_left_out_is_made_up_by_the_run_that_goes_on(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str,
) -> None:  # fmt: skip
    in_probe, seen = FrozenEncoder.features, []
    in_step = Trainer.gradients

    def features(self: FrozenEncoder, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        os.kill(os.getpid(), signal.SIGTERM)
        return in_probe(self, images)

    def gradients(self: Trainer, *given: Any) -> Any:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return in_step(self, *given)

    config = tiny(checkpoint_every=100, probe={"every_epochs": 1, "data": labelled, "k": 3})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pretrain(config, whole)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as left:
        if when == "in the probe":
            patched.setattr(FrozenEncoder, "features", features)
        else:
            patched.setattr(Trainer, "gradients", gradients)
        pretrain(config, stopped)
    assert left.value.code == EXIT_INTERRUPTED
    assert seen == ([6] if when == "in the probe" else [])  # those of the bank were left alone
    assert "asked to stop: the probe is left to the run that goes on" in caplog.text
    assert torch.load(stopped / LAST, weights_only=True)["step"] == 2  # an epoch has two steps
    assert probed_steps(stopped) == []
    pretrain(config, stopped)
    assert probed_steps(stopped) == probed_steps(whole) == [2, 4, 5]
    weights = [torch.load(folder / LAST, weights_only=True)["model"] for folder in (whole, stopped)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_probe_that_is_in_the_log_is_not_repeated(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fails_at_step_2(self: Trainer) -> None:
        if self.step == 2:
            raise RuntimeError

    config = tiny(checkpoint_every=2, probe={"every_epochs": 1, "data": labelled, "k": 3})
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(Trainer, "_set_rates", fails_at_step_2)
        pretrain(config, tmp_path)
    pretrain(config, tmp_path)
    assert probed_steps(tmp_path) == [2, 4, 5]
