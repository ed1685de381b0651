"""The training loop: resuming bit by bit, stopping cleanly, refusing to go on with NaN."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.checkpoint import BACKBONE, LAST
from pretrain.config import PretrainConfig
from pretrain.engine import EXIT_INTERRUPTED, METRICS, Trainer
from pretrain.models import SelfSupervisedModel
from pretrain.train import check_stage, pretrain

Make = Callable[..., PretrainConfig]


def weights(folder: Path) -> dict[str, Tensor]:
    state = torch.load(folder / LAST, weights_only=True)["model"]
    assert isinstance(state, dict)
    return state


def logged(folder: Path) -> list[dict[str, float]]:
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int, action: Callable[[], None]) -> None:
    """Do `action` inside step `steps + 1`, that is after `steps` whole steps."""
    original, count = Trainer.train_step, [0]

    def train_step(self: Trainer, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count[0] += 1
        if count[0] == steps + 1:
            action()
        return original(self, views)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def crash() -> None:
    raise RuntimeError("power cut")


@pytest.mark.parametrize("steps", [1, 3, 4])
@pytest.mark.parametrize("loss", ["w-mse", "cw-rgp"])
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

    def collapsed(self: SelfSupervisedModel, views: Tensor) -> tuple[Tensor, Tensor]:
        encoding, embedding = original(self, views)
        return encoding, 0 * embedding

    monkeypatch.setattr(SelfSupervisedModel, "forward", collapsed)
    with monkeypatch.context() as patch:
        kill_after(patch, 3, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(tiny(), tmp_path / "run")
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["step"] == 2
    pretrain(tiny(), tmp_path / "run")  # two views, one sub-batch: two ridges a step
    assert [entry["regularized"] for entry in logged(tmp_path / "run")] == [2, 4, 6, 8, 10]


def test_a_healthy_run_logs_no_ridge_and_a_white_output(tiny: Make, tmp_path: Path) -> None:
    pretrain(tiny(max_steps=2), tmp_path / "run")
    for entry in logged(tmp_path / "run"):
        assert entry["regularized"] == 0
        assert entry["whitened/rank"] == 4
        assert entry["whitened/stable_rank"] == pytest.approx(4, rel=1e-4)
        assert entry["embedding/stable_rank"] < 3.99
        assert entry["encoding/rank"] <= 7  # eight images, centred


def test_a_loss_that_whitens_nothing_logs_no_whitened_output(tiny: Make, tmp_path: Path) -> None:
    pretrain(tiny(max_steps=1, method="none", loss={"name": "none"}), tmp_path / "run")
    (entry,) = logged(tmp_path / "run")
    assert "embedding/rank" in entry
    assert not any(name.startswith("whitened") for name in entry)


def test_five_steps_of_two_epochs_differ_from_another_seed(tiny: Make, tmp_path: Path) -> None:
    pretrain(tiny(), tmp_path / "a")
    pretrain(tiny(seed=1), tmp_path / "b")
    assert [entry["step"] for entry in logged(tmp_path / "a")] == [1, 2, 3, 4, 5]
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_the_number_of_workers_changes_nothing(tiny: Make, tmp_path: Path) -> None:
    config = tiny(max_steps=3)
    parallel = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": 2})})
    pretrain(config, tmp_path / "none")
    pretrain(parallel, tmp_path / "two")
    assert same(weights(tmp_path / "none"), weights(tmp_path / "two"))


def test_a_signal_saves_and_leaves_with_75(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(checkpoint_every=100)
    pretrain(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 2, lambda: os.kill(os.getpid(), signal.SIGUSR2))
        with pytest.raises(SystemExit) as stopped:
            pretrain(config, tmp_path / "stopped")
    assert stopped.value.code == EXIT_INTERRUPTED
    assert torch.load(tmp_path / "stopped" / LAST, weights_only=True)["step"] == 3
    pretrain(config, tmp_path / "stopped")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_nan_stops_the_run_and_says_where(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(self: Trainer, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nan = torch.tensor(float("nan"))
        return nan, nan, nan

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(ValueError, match=r"loss became nan at step 0 of 5 .*learning rate"):
        pretrain(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / BACKBONE).exists()


def test_a_damaged_checkpoint_and_another_config_are_refused(tiny: Make, tmp_path: Path) -> None:
    pretrain(tiny(), tmp_path / "run")
    with pytest.raises(ValueError, match="another config"):
        pretrain(tiny(seed=3), tmp_path / "run")
    (tmp_path / "run" / LAST).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="damaged checkpoint"):
        pretrain(tiny(), tmp_path / "run")


def test_backbone_file_has_torchvisions_names_and_the_input(tiny: Make, tmp_path: Path) -> None:
    pretrain(tiny(), tmp_path / "run")
    content = torch.load(tmp_path / "run" / BACKBONE, weights_only=True)
    assert set(content) == {"state_dict", "arch", "method", "input"}
    assert (content["arch"], content["method"]) == ("resnet18", "w-mse")
    assert len(content["state_dict"]) == 120
    assert not any(name.startswith("fc") for name in content["state_dict"])
    assert content["input"]["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert content["input"]["pixel_std"] == pytest.approx([58.395, 57.12, 57.375])
    trained = {
        name.removeprefix("encoder."): value
        for name, value in weights(tmp_path / "run").items()
        if name.startswith("encoder.")
    }
    assert same(content["state_dict"], trained)


def test_checks_before_the_start_name_bad_images_and_missing_folders(
    tiny: Make, tmp_path: Path
) -> None:
    config = tiny()
    assert check_stage(config.model_dump(mode="json")) == []
    (tmp_path / "images" / "03.png").write_bytes(b"not a png")
    (fault,) = check_stage(config.model_dump(mode="json"))
    assert "03.png: not a readable image" in fault
    gone = tiny(data={"name": "x", "root": str(tmp_path / "gone")})
    (fault,) = check_stage(gone.model_dump(mode="json"))
    assert fault.endswith("gone: no such folder; wanted a folder of images")


def test_fewer_images_than_a_batch_are_refused(tiny: Make, tmp_path: Path) -> None:
    config = tiny(batch_size=24, loss={"name": "w-mse", "sub_batch": 8})
    with pytest.raises(ValueError, match="20 images are less than one batch of 24"):
        pretrain(config, tmp_path / "run")
