"""Resuming: bit by bit, from a whole state, and only of the same run."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.config.pretrain import PretrainConfig
from pretrain.models import BACKBONE, Features, SelfSupervisedModel
from pretrain.runtime.checkpoint import LAST, PREVIOUS
from pretrain.runtime.distributed import Processes
from pretrain.train import pretrain
from pretrain.training.resume import state_to_resume
from tests.pretrain.training.runs import crash, kill_after, logged, same, weights

Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")


def test_a_state_goes_on_over_the_same_images_only(tiny: Make, tmp_path: Path) -> None:
    alone = Processes(torch.device("cpu"))
    assert state_to_resume(tmp_path, alone, {}, 16) is None
    pretrain(tiny(max_steps=1), tmp_path)
    stored = torch.load(tmp_path / LAST, weights_only=True)
    config, num_images = stored["config"], stored["num_images"]
    state = state_to_resume(tmp_path, alone, config, num_images)
    assert state is not None and state["step"] == 1
    with pytest.raises(ValueError, match=f"a run over {num_images} images, this one has 1;"):
        state_to_resume(tmp_path, alone, config, 1)


@pytest.mark.parametrize(
    ("loss", "steps"), [("w-mse", 1), ("w-mse", 3), ("w-mse", 4), ("cw-rgp", 3)]
)
def test_a_killed_run_ends_with_bit_identical_weights(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, loss: str
) -> None:
    changes: dict[str, object] = {}
    if loss == "cw-rgp":
        changes["loss"] = {"name": "cw-rgp", "sub_batch": 8, "groups": 2}
        changes["model"] = {"arch": "resnet18", "projector_hidden": 16, "embedding_dim": 32}
    config = tiny(**changes)
    pretrain(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, steps, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(config, tmp_path / "killed")
    assert not (tmp_path / "killed" / BACKBONE).exists()
    pretrain(config, tmp_path / "killed")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    keys = ("step", "loss", "lr")
    assert [[entry[key] for key in keys] for entry in logged(tmp_path / "whole")] == [
        [entry[key] for key in keys] for entry in logged(tmp_path / "killed")
    ]


def test_ridges_are_logged_and_counted_on_after_a_resume(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SelfSupervisedModel.forward

    def collapsed(self: SelfSupervisedModel, views: Tensor) -> Features:
        features = original(self, views)
        return features._replace(embedding=0 * features.embedding)

    monkeypatch.setattr(SelfSupervisedModel, "forward", collapsed)
    with monkeypatch.context() as patch:
        kill_after(patch, 3, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(tiny(), tmp_path / "run")
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["step"] == 2
    pretrain(tiny(), tmp_path / "run")  # two views, one sub-batch: two ridges a step
    assert [entry["regularized"] for entry in logged(tmp_path / "run")] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("removed", ["loss", "ranks"])
def test_a_state_of_another_version_is_refused(tiny: Make, tmp_path: Path, removed: str) -> None:
    config = tiny(max_steps=1)
    pretrain(config, tmp_path)
    state = torch.load(tmp_path / LAST, weights_only=True)
    state["ranks"][0].pop("loss")
    torch.save({k: v for k, v in state.items() if k != removed}, tmp_path / LAST)
    with pytest.raises(ValueError, match=f"has no .*{removed}; it was written by another version"):
        pretrain(config, tmp_path)


def test_another_config_or_number_of_images_is_refused(tiny: Make, tmp_path: Path) -> None:
    pretrain(tiny(max_steps=2), tmp_path / "run")
    with pytest.raises(ValueError, match=r"another config \(optimizer.lr, seed\)"):
        changed = {"optimizer": {"lr": 0.002, "warmup_steps": 1}, "seed": 3}
        pretrain(tiny(max_steps=2, **changed), tmp_path / "run")
    (tmp_path / "images" / "00.png").unlink()
    with pytest.raises(ValueError, match="over 20 images, this one has 19; give it 20 images"):
        pretrain(tiny(max_steps=2), tmp_path / "run")


def test_scores_of_another_probe_are_not_gone_on_with(tiny: Make, tmp_path: Path) -> None:
    config, alone = tiny(max_steps=1), Processes(torch.device("cpu"))
    pretrain(config, tmp_path)
    state = torch.load(tmp_path / LAST, weights_only=True)
    assert state["probe"] is None
    torch.save(state | {"probe": {"k": 5, "size": None}}, tmp_path / LAST)
    before: dict[str, object] = {"k": 5, "size": None}
    for probe in (None, before):
        assert state_to_resume(tmp_path, alone, config.identity(), 20, probe) is not None
    with pytest.raises(ValueError, match=r"of another probe \(k was otherwise\); put that back"):
        state_to_resume(tmp_path, alone, config.identity(), 20, before | {"k": 1})


def test_a_damaged_last_state_falls_back_to_the_one_before(
    tiny: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(tiny(), tmp_path / "run")
    before = weights(tmp_path / "run")
    last, previous = tmp_path / "run" / LAST, tmp_path / "run" / PREVIOUS
    assert torch.load(previous, weights_only=True)["step"] == 4
    os.truncate(last, last.stat().st_size // 2)
    pretrain(tiny(), tmp_path / "run")
    assert "last.pth: damaged checkpoint" in caplog.text
    assert "taking previous.pth, which is whole" in caplog.text
    assert same(before, weights(tmp_path / "run"))
    assert torch.load(previous, weights_only=True)["step"] == 4  # not pushed out by the damaged one
    os.truncate(last, 100)
    os.truncate(previous, 100)
    with pytest.raises(ValueError, match=r"last\.pth: damaged.*previous\.pth: damaged.*start this"):
        pretrain(tiny(), tmp_path / "run")
