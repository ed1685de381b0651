"""The training loop: resuming bit by bit, stopping cleanly, refusing to go on with NaN."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.losses.whitening import WhiteningLoss
from pretrain.models.backbone_file import BACKBONE
from pretrain.models.encoder import SelfSupervisedModel
from pretrain.runtime.checkpoint import LAST, PREVIOUS
from pretrain.runtime.distributed import Processes
from pretrain.runtime.signals import EXIT_INTERRUPTED
from pretrain.train import check_stage, pretrain
from pretrain.training.divergence import DIVERGENCE, DivergedError
from pretrain.training.metrics import METRICS
from pretrain.training.trainer import Output, Trainer

Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")


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
    original, count = Trainer.gradients, [0]

    def gradients(self: Trainer, parallel: nn.Module, views: Tensor) -> Output:
        count[0] += 1
        if count[0] == steps + 1:
            action()
        return original(self, parallel, views)

    monkeypatch.setattr(Trainer, "gradients", gradients)


def crash() -> None:
    raise RuntimeError("power cut")


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


class TwoProcesses(Processes):
    """Rank 0 of two; the other one says 5 whatever it is asked, and has counted 5 ridges."""

    def all_gather(self, values: Sequence[float]) -> list[list[float]]:
        return [list(values), [5.0] * len(values)]

    def gather(self, entry: dict[str, object]) -> list[object]:  # type: ignore[override]
        return [entry, {**entry, "loss": {"num_regularized": torch.tensor(5)}}]


def test_ridges_of_channel_whitening_are_added_over_processes_and_kept_apart(
    tiny: Make, tmp_path: Path
) -> None:
    sections = {
        "batch": {},
        "channels": {
            "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2},
            "model": {"arch": "resnet18", "projector_hidden": 16, "embedding_dim": 32},
        },
    }
    for over, wanted in (("batch", 2), ("channels", 2 + 5)):
        trainer = Trainer(tiny(**sections[over]), tmp_path, TwoProcesses(torch.device("cpu")))
        assert isinstance(trainer.loss, WhiteningLoss)
        trainer.loss.num_regularized += 2
        assert trainer.regularized_count() == wanted
        trainer.save()
        ranks = torch.load(tmp_path / LAST, weights_only=True)["ranks"]
        assert [int(own["loss"]["num_regularized"]) for own in ranks] == [2, 5]


def test_every_process_waits_for_what_the_first_does_after_an_epoch(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(Processes, "barrier", lambda _: order.append("wait"))

    def after_epoch(*_: object) -> dict[str, float]:
        order.append("hook")
        return {}

    Trainer(tiny(max_steps=4), tmp_path, Processes(torch.device("cpu")), after_epoch).train()
    assert order == ["hook", "wait"] * 2


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


def poison(
    monkeypatch: pytest.MonkeyPatch, step: int, change: Callable[[Trainer, Output], Output]
) -> None:
    """Change what step number `step` (from 1) gives."""
    original, count = Trainer.gradients, [0]

    def gradients(self: Trainer, parallel: nn.Module, views: Tensor) -> Output:
        count[0] += 1
        output = original(self, parallel, views)
        return change(self, output) if count[0] == step else output

    monkeypatch.setattr(Trainer, "gradients", gradients)


def nan_loss(trainer: Trainer, output: Output) -> Output:
    return output._replace(loss=output.loss * float("nan"))


def infinite_slope(trainer: Trainer, output: Output) -> Output:
    slope = next(trainer.model.parameters()).grad
    assert slope is not None
    slope.view(-1)[0] = float("inf")
    return output


@pytest.mark.parametrize(
    ("change", "words"),
    [(nan_loss, "loss became nan"), (infinite_slope, "norm of the gradient became (inf|nan)")],
)
def test_what_is_not_finite_stops_the_run_and_is_kept(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Trainer, Output], Output], words: str,
) -> None:  # fmt: skip
    config = tiny(optimizer={"lr": 0.001, "warmup_steps": 10})
    poison(monkeypatch, 4, change)
    pattern = rf"{words} at step 3 of 5 with learning rate 0\.0004; last good state is .*{LAST}; "
    with pytest.raises(DivergedError, match=pattern):
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run" / BACKBONE).exists()
    good = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert good["step"] == 2
    kept = torch.load(tmp_path / "run" / DIVERGENCE, weights_only=True)
    assert kept["step"] == 3 and kept["lr"] == pytest.approx(0.0004)
    assert kept["views"].shape == (2, 8, 3, 32, 32) and kept["embedding"].shape == (2, 8, 4)
    assert kept["config"] == config.identity()
    # the weights are those that gave the loss, not yet spoilt by an update
    model = SelfSupervisedModel(config.model)
    model.load_state_dict(kept["model"])
    encoding, embedding = model.train()(kept["views"])
    assert torch.allclose(embedding, kept["embedding"], atol=1e-4)
    assert torch.allclose(encoding, kept["encoding"], atol=1e-4)


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


def test_every_second_epoch_is_kept_and_hooks_see_each(tiny: Make, tmp_path: Path) -> None:
    config = tiny(max_steps=7, keep_every_epochs=2)  # 2 steps an epoch
    seen: list[int] = []

    def after_epoch(epoch: int, encoder: nn.Module, _: object) -> dict[str, float]:
        seen.append(epoch)
        encoder.eval()
        torch.rand(3)
        return {"probe/knn": 10.0 * epoch}

    for hook in (None, after_epoch):
        folder = tmp_path / ("plain" if hook is None else "hooked")
        folder.mkdir()
        Trainer(config, folder, Processes(torch.device("cpu")), hook).train()
        assert [path.name for path in sorted(folder.glob("epoch_*"))] == ["epoch_0002.pth"]
    assert seen == [1, 2, 3]
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "hooked"))
    probed = [entry for entry in logged(tmp_path / "hooked") if "probe/knn" in entry]
    assert [(e["step"], e["max_steps"], e["probe/knn"]) for e in probed] == [
        (2, 7, 10), (4, 7, 20), (6, 7, 30),
    ]  # fmt: skip
    state = torch.load(tmp_path / "hooked" / "epoch_0002.pth", weights_only=True)
    assert (state["step"], state["epoch"], state["step_in_epoch"]) == (4, 2, 0)
    state = torch.load(tmp_path / "hooked" / LAST, weights_only=True)
    assert (state["step"], state["epoch"], state["step_in_epoch"]) == (7, 3, 1)


def test_the_covariance_term_ends_and_rates_follow_the_schedule(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []
    original = Trainer.gradients

    def gradients(self: Trainer, parallel: nn.Module, views: Tensor) -> Output:
        seen.append((self.step, float(self.loss.covariance_weight)))  # type: ignore[arg-type]
        return original(self, parallel, views)

    monkeypatch.setattr(Trainer, "gradients", gradients)
    changes: dict[str, object] = {
        "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2, "covariance_weight": 0.5},
        "model": {"projector_hidden": 16, "embedding_dim": 16},
        "optimizer": {"name": "lars", "lr": 1.0, "warmup_steps": 1, "lr_update": "epoch"},
        "epochs": 2, "max_steps": None, "covariance_epochs": 1,
    }  # fmt: skip
    pretrain(tiny(**changes), tmp_path / "run")
    assert seen == [(0, 0.5), (1, 0.5), (2, 0.0), (3, 0.0)]
    assert [entry["lr"] for entry in logged(tmp_path / "run")] == pytest.approx([1, 1, 0.5, 0.5])


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
