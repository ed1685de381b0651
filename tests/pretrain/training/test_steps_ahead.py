"""A GPU's steps are read one late: nothing waits, and a bad one still stops the run as it was."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import WhiteningLoss
from pretrain.runtime.checkpoint import LAST
from pretrain.runtime.distributed import Processes
from pretrain.train import pretrain
from pretrain.training import DivergedError, Trainer, trainer
from pretrain.training.divergence import DIVERGENCE
from pretrain.training.optimizers import build_optimizer
from pretrain.training.trainer import Output
from tests.fake_cuda import CUDA, FakeCuda, fake_cuda
from tests.pretrain.training.runs import kill_after, logged, same, weights

Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")
SPARSE = {"log_every": 100, "checkpoint_every": 100}
RECIPES: dict[str, dict[str, Any]] = {
    "w-mse, adam": {},
    "cw-rgp, lars, bf16": {
        "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2, "covariance_weight": 0.1},
        "model": {"projector_hidden": 16, "embedding_dim": 32},
        "optimizer": {"name": "lars", "lr": 0.1},
        "compute": {"precision": "bf16", "accumulate": 1, "channels_last": False},
    },
    "zca, sgd, fp16": {
        "loss": {"name": "whitening", "over": "batch", "method": "zca", "sub_batch": 8},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "compute": {"precision": "fp16"},
    },
    "simsiam, sgd": {"loss": {"name": "simsiam"}, "optimizer": {"name": "sgd", "lr": 0.1}},
    "byol, lars, bf16": {
        "loss": {"name": "byol"},
        "optimizer": {"name": "lars", "lr": 0.1},
        "compute": {"precision": "bf16", "accumulate": 2},
    },
    "moco-v2, adam, fp16": {
        "loss": {"name": "moco-v2", "queue": 32},
        "compute": {"precision": "fp16", "accumulate": 2},
    },
}


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU run ahead as a GPU does."""
    monkeypatch.setitem(trainer.STEPS_AHEAD, "cpu", 1)


def test_running_ahead_changes_neither_weights_nor_log(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(log_every=3, max_steps=7)
    pretrain(config, tmp_path / "plain")
    monkeypatch.setitem(trainer.STEPS_AHEAD, "cpu", 1)
    pretrain(config, tmp_path / "ahead")
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "ahead"))
    plain, late = logged(tmp_path / "plain"), logged(tmp_path / "ahead")
    for entry in plain + late:
        del entry["images_per_s"]
    assert plain == late and [entry["step"] for entry in plain] == [3, 6, 7]


@pytest.mark.usefixtures("ahead")
def test_a_bad_step_is_kept_as_it_was_though_the_next_has_begun(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(log_every=100, optimizer={"lr": 0.001, "warmup_steps": 10})  # saved at step 2
    original, batches = Trainer.gradients, []

    def gradients(self: Trainer, parallel: nn.Module, views: Tensor) -> Output:
        batches.append(views)
        output = original(self, parallel, views)
        return output._replace(loss=output.loss * torch.nan) if len(batches) == 3 else output

    monkeypatch.setattr(Trainer, "gradients", gradients)
    with pytest.raises(
        DivergedError, match=r"loss became nan at step 2 of 5 with learning rate 0\.0003;"
    ):
        pretrain(config, tmp_path / "run")
    assert len(batches) == 4  # the next one was under way
    dump = torch.load(tmp_path / "run" / DIVERGENCE, weights_only=True)
    assert dump["step"] == 2 and dump["lr"] == pytest.approx(0.0003)
    assert torch.equal(dump["views"], batches[2])
    before = weights(tmp_path / "run")
    names = [name for name in before if "running" not in name and "num_batches" not in name]
    assert len(names) >= 10 and all(torch.equal(before[n], dump["model"][n]) for n in names)


@pytest.mark.usefixtures("ahead")
def test_a_signal_is_heard_a_step_late_and_nothing_is_lost(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(**SPARSE)
    pretrain(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 2, lambda: os.kill(os.getpid(), signal.SIGUSR2))
        with pytest.raises(SystemExit):
            pretrain(config, tmp_path / "stopped")
    assert torch.load(tmp_path / "stopped" / LAST, weights_only=True)["step"] in (3, 4)
    pretrain(config, tmp_path / "stopped")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_a_state_of_a_cpu_goes_on_with_fused_kernels(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(max_steps=2)
    pretrain(config, tmp_path)
    state = torch.load(tmp_path / LAST, weights_only=True)
    monkeypatch.setattr(trainer, "build_optimizer", partial(build_optimizer, fused=True))
    resumed = Trainer(config, tmp_path, Processes(torch.device("cpu")))
    resumed.load_state_dict(state)
    assert all(group["fused"] for group in resumed.optimizer.param_groups)


class Views:
    """Batches of a GPU without values; counts the waits of each step."""

    num_images = 10**6

    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu = gpu
        self.waits: list[list[str]] = []

    def batches(self, epoch: int, first_step: int) -> Iterator[Tensor]:
        while True:
            self.gpu.waits.clear()
            yield torch.empty(2, 8, 3, 32, 32, device=CUDA)
            self.waits.append(list(self.gpu.waits))


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_only_a_logged_step_waits_for_the_gpu(
    changes: dict[str, Any], tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(**changes, log_every=4, checkpoint_every=100, max_steps=9)
    notes: list[str] = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    with fake_cuda(notes) as gpu:
        views = Views(gpu)
        monkeypatch.setattr(trainer, "ShardedViews", lambda *_: views)
        run = Trainer(config, tmp_path, Processes(CUDA))
        monkeypatch.setattr(run, "save", lambda: None)
        run.train()
    assert torch.backends.cudnn.benchmark
    waits = [len(lines) for lines in views.waits]
    read = 2 if isinstance(run.loss, WhiteningLoss) else 1  # ridges, and indicators
    assert waits == [0, 0, 0, read, 0, 0, 0, read]
    assert [entry["step"] for entry in logged(tmp_path)] == [4, 8, 9]
    first = notes.index("steps: host waits for the event")
    assert notes[:first] == ["steps: event"] * 2  # of step 1, after step 2 was launched
