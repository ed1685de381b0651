"""The training loop: resuming bit by bit, stopping cleanly, refusing to go on with NaN."""

import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import WhiteningLoss
from pretrain.runtime.checkpoint import LAST
from pretrain.runtime.distributed import Processes
from pretrain.runtime.signals import EXIT_INTERRUPTED
from pretrain.train import pretrain
from pretrain.training.trainer import Output, Trainer
from tests.pretrain.training.runs import crash, kill_after, logged, same, weights

Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")


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


def test_a_momentum_branch_follows_after_every_step_at_its_place_in_the_run(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(loss={"name": "byol", "momentum": 0.9, "predictor_hidden": 8})
    trainer = Trainer(config, tmp_path, Processes(torch.device("cpu")))
    weight = trainer.model.get_parameter("projector.0.weight").detach()
    average, total = weight.double(), config.max_steps
    assert total is not None

    def update() -> None:
        Trainer.update(trainer)
        m = 1 - (1 - 0.9) * (math.cos(math.pi * trainer.step / total) + 1) / 2
        average.mul_(m).add_(weight.double(), alpha=1 - m)

    monkeypatch.setattr(trainer, "update", update)
    trainer.train()
    branch = trainer.model.get_parameter("momentum_projector.0.weight").double()
    torch.testing.assert_close(branch, average, rtol=0, atol=1e-7)
    assert (branch - weight).abs().max() > 1e-4


def test_every_process_waits_for_what_the_first_does_after_an_epoch(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    gather = Processes.all_gather  # waits for all, as the barrier that is made of it

    def waited(self: Processes, values: Sequence[float]) -> list[list[float]]:
        order.append("wait")
        return gather(self, values)

    monkeypatch.setattr(Processes, "all_gather", waited)

    def after_epoch(*_: object) -> dict[str, float]:
        order.append("hook")
        return {}

    Trainer(tiny(max_steps=4), tmp_path, Processes(torch.device("cpu")), after_epoch).train()
    hooks = [number for number, name in enumerate(order) if name == "hook"]  # an epoch, the end
    assert [order[number + 1] for number in hooks] == ["wait", "wait"]


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


def test_every_second_epoch_is_kept_and_hooks_see_each(tiny: Make, tmp_path: Path) -> None:
    config = tiny(max_steps=7, keep_every_epochs=2)  # 2 steps an epoch
    seen: list[int | None] = []

    def after_epoch(epoch: int | None, encoder: nn.Module, _: object) -> dict[str, float]:
        seen.append(epoch)
        encoder.eval()
        torch.rand(3)
        return {"probe/knn": 10.0 * (epoch or 9)}

    for hook in (None, after_epoch):
        folder = tmp_path / ("plain" if hook is None else "hooked")
        folder.mkdir()
        Trainer(config, folder, Processes(torch.device("cpu")), hook).train()
        assert [path.name for path in sorted(folder.glob("epoch_*"))] == ["epoch_0002.pth"]
    assert seen == [1, 2, 3, None]  # and the end
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "hooked"))
    probed = [entry for entry in logged(tmp_path / "hooked") if "probe/knn" in entry]
    assert [(e["step"], e["max_steps"], e["probe/knn"]) for e in probed] == [
        (2, 7, 10), (4, 7, 20), (6, 7, 30), (7, 7, 90),
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
    assert seen == [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.0)]
    assert [entry["lr"] for entry in logged(tmp_path / "run")] == pytest.approx([1, 1, 0.5, 0.5])


@pytest.mark.parametrize("mode", ["per-view", "all-views"])
def test_views_of_differing_sizes_are_trained_on_in_parts(
    tiny: Make, tmp_path: Path, mode: str
) -> None:
    """Without BatchNorm the parts of a batch give the gradients of the whole."""
    views = tuple(torch.randn(8, 3, side, side) for side in (40, 40, 32))
    grads = []
    for accumulate in (1, 2):
        config = tiny(
            augment={"size": 40, "views": [{"count": 2}, {"size": 32}]},
            loss={"name": "none"}, compute={"accumulate": accumulate},
            model={"projector_layers": 1, "embedding_dim": 4, "encoder_batchnorm": mode},
        )  # fmt: skip
        trainer = Trainer(config, tmp_path, Processes(torch.device("cpu")))
        for module in trainer.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.train = lambda mode, module=module: module  # type: ignore[method-assign]
        output = trainer.gradients(trainer.model, views)
        assert output.encoding.shape == (3, 8, 16) and output.embedding.shape == (3, 8, 4)
        grads.append([output.loss, output.embedding, *trainer_grads(trainer)])
    for whole, parts in zip(*grads, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def trainer_grads(trainer: Trainer) -> list[Tensor]:
    return [p.grad for p in trainer.model.parameters() if p.grad is not None]


APART = {
    "loss": {"name": "simsiam", "predictor_hidden": 4},
    "optimizer": {"name": "sgd", "lr": 2.0, "warmup_steps": 1, "norm_and_bias_rate": 0.5},
    "max_steps": 4,
}


def test_groups_follow_the_schedule_or_stay_at_their_peak(tiny: Make, tmp_path: Path) -> None:
    trainer = Trainer(tiny(**APART), tmp_path, Processes(torch.device("cpu")))
    factors = [1.0, 1.0, 0.75, 0.25]  # a step of warm-up, then half a cosine over three
    for trainer.step, factor in enumerate(factors):
        trainer._set_rates()
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        # kernels, biases and norms; then those of the predictor
        assert rates == pytest.approx([2 * factor, factor, 2, 1])


def test_groups_keep_their_rates_over_a_resume(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(tiny(**APART), tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 2, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(tiny(**APART), tmp_path / "cut")
    pretrain(tiny(**APART), tmp_path / "cut")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    # without rates apart a state's groups are those of a version that knew none, and the other way
    pretrain(tiny(max_steps=2), tmp_path / "alike")
    (group,) = torch.load(tmp_path / "alike" / LAST, weights_only=True)["optimizer"]["param_groups"]
    assert {"rate", "constant_rate"}.isdisjoint(group)
