"""A probe that came after the training: the numbers are those it would have measured."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from pretrain.config.pretrain import PretrainConfig
from pretrain.models import BACKBONE
from pretrain.probes import kept
from pretrain.probes.kept import LATE_PROBE, probe_kept_states
from pretrain.runtime.checkpoint import LAST
from pretrain.train import pretrain, probe_stage
from pretrain.training.metrics import METRICS

pytestmark = pytest.mark.usefixtures("small_net")


@pytest.fixture
def labelled(tmp_path: Path) -> dict[str, object]:
    """Write 12 + 6 images of two classes that only noise tells apart."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in ("one", "two"):
            folder = tmp_path / "labelled" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=generator)
                Image.fromarray(pixels.byte().numpy()).save(folder / f"{index}.png")
    return {"name": "noise", "root": tmp_path / "labelled", "format": "imagefolder"}


def probed(path: Path) -> dict[float, float]:
    lines = map(json.loads, (path / METRICS).read_text("utf-8").splitlines())
    return {line["step"]: line["knn/top1"] for line in lines if "knn/top1" in line}


def test_the_numbers_are_those_of_a_probe_along_the_way(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object], tmp_path: Path
) -> None:
    section = {"every_epochs": 1, "data": labelled, "k": 3}
    length = {"epochs": 3, "max_steps": None, "keep_every_epochs": 2}
    pretrain(tiny(**length, probe=section), tmp_path / "along")
    pretrain(tiny(**length), tmp_path / "after")
    before = {path: path.read_bytes() for path in (tmp_path / "after").glob("*.*")}
    trained = tmp_path / "after" / BACKBONE  # a probe leaves no trace in it
    assert (tmp_path / "along" / BACKBONE).read_bytes() == before[trained]
    points = probe_kept_states(tiny(**length, probe=section), tmp_path / "after")
    along = probed(tmp_path / "along")
    assert {point["step"]: point["knn/top1"] for point in points} == {
        step: along[step]
        for step in sorted(along)[1:]  # epoch 2 was kept, and the last one
    }
    assert all(path.read_bytes() == content for path, content in before.items())
    content = json.loads((tmp_path / "after" / LATE_PROBE).read_text("utf-8"))
    assert content["complete"] is True and content["points"] == points


def test_the_end_is_measured_wherever_it_lies(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object], tmp_path: Path
) -> None:
    """In the middle of an epoch, and after one that is not probed."""
    pretrain(tiny(max_steps=3), tmp_path)
    config = tiny(max_steps=3, probe={"every_epochs": 9, "data": labelled, "k": 3})
    assert [point["step"] for point in probe_kept_states(config, tmp_path)] == [3]


def test_what_was_measured_stays_and_another_probe_is_measured_anew(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    section = {"every_epochs": 1, "data": labelled, "k": 3}
    length = {"epochs": 2, "max_steps": None, "keep_every_epochs": 1}
    pretrain(tiny(**length), tmp_path)
    config = tiny(**length, probe=section)
    points = probe_kept_states(config, tmp_path)
    asked = []
    measure = kept.TrainingProbe.measure
    monkeypatch.setattr(
        kept.TrainingProbe, "measure", lambda *given: asked.append(1) or measure(*given)
    )
    probe_stage(config.model_dump(mode="json"), tmp_path)
    assert asked == []
    content = json.loads((tmp_path / LATE_PROBE).read_text("utf-8"))
    content["points"].pop()
    (tmp_path / LATE_PROBE).write_text(json.dumps(content), encoding="utf-8")
    assert probe_kept_states(config, tmp_path) == points and asked == [1]
    every_second = tiny(**length, probe=section | {"every_epochs": 2})
    assert probe_kept_states(every_second, tmp_path) == points[1:]


def test_a_damaged_state_and_data_that_are_missing_are_named(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object], tmp_path: Path
) -> None:
    length = {"epochs": 1, "max_steps": None}
    pretrain(tiny(**length), tmp_path / "run")
    config = tiny(**length, probe={"every_epochs": 1, "data": labelled, "k": 3})
    (tmp_path / "run" / LAST).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"last\.pth: damaged checkpoint"):
        probe_kept_states(config, tmp_path / "run")
    (tmp_path / "labelled").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="labelled"):
        probe_kept_states(config, tmp_path / "run")
