"""Two gloo processes train on one global batch as one process does, BatchNorm aside."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.runtime.device import Views
from pretrain.runtime.distributed import Processes, joined_processes
from pretrain.training import Trainer, precision

Make = Callable[..., PretrainConfig]
MULTI_CROP = {
    "loss": {"name": "none"},
    "augment": {"size": 32, "solarize": 0.5, "views": [{"count": 2}, {"size": 36}, {"size": 40}]},
}
Result = tuple[float, list[Tensor], Views]
CW_RGP = {
    "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2},
    "model": {"projector_hidden": 16, "embedding_dim": 32},
}


def without_batchnorm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        without_batchnorm(child)


def fix_draws(trainer: Trainer) -> None:
    """Give channel whitening's sub-batches, one per process here, images and channels in order."""
    original = trainer.loss.forward

    def in_order(x: Tensor, **_: object) -> Tensor:
        rows = torch.arange(x.shape[1])[None]
        shape = (1, x.shape[1] // 4, *x.shape[::2])
        value: Tensor = original(
            x, batch_permutation=rows, channel_partition=torch.arange(x.shape[2]).expand(shape)
        )
        return value

    trainer.loss.forward = in_order  # type: ignore[method-assign, assignment]


def one_step(config: PretrainConfig, folder: Path, processes: Processes) -> Result:
    """Return the loss, the gradients and this process's views of the second step."""
    trainer = Trainer(config, folder, processes)
    torch.manual_seed(3)
    trainer.model.encoder = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.Tanh(), nn.AdaptiveAvgPool2d(7), nn.Flatten(),
        nn.Linear(8 * 49, 512),
    )  # fmt: skip
    without_batchnorm(trainer.model)
    if config.loss.over == "channels":
        fix_draws(trainer)
    views = next(trainer.views.batches(epoch=0, first_step=1))
    parallel = precision.parallel(trainer.model, processes)
    output = trainer.gradients(parallel, views)
    trainer._watch(output, views)
    loss, signal = trainer._agree(15 * processes.rank)
    assert signal == 15 * (processes.size - 1)  # every process hears of it
    grads = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
    return loss, grads, views


def compare(rank: int, port: int, folder: Path, cases: list[tuple[PretrainConfig, Result]]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with joined_processes() as processes:
        assert (processes.rank, processes.size) == (rank, 2)
        for config, (loss, grads, views) in cases:
            own_loss, own_grads, own_views = one_step(config, folder, processes)
            for own_view, view in zip(own_views, views, strict=True):
                assert torch.equal(own_view, view[4 * rank : 4 * rank + 4])
            assert own_loss == pytest.approx(loss, rel=1e-5)
            for own, wanted in zip(own_grads, grads, strict=True):
                torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-6)
        assert processes.gather(rank) == ([0, 1] if rank == 0 else [])
        assert processes.broadcast(f"of {rank}") == "of 0"


def test_two_processes_have_the_loss_and_gradients_of_one(tiny: Make, tmp_path: Path) -> None:
    alone = Processes(torch.device("cpu"))
    cases = [
        (config, one_step(config, tmp_path, alone))
        for config in (tiny(), tiny(loss={"name": "none"}), tiny(**CW_RGP), tiny(**MULTI_CROP))
    ]
    assert all(max(float(s.abs().max()) for s in grads) > 1e-3 for _, (_, grads, _) in cases)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(compare, args=(port, tmp_path, cases), nprocs=2, start_method="forkserver")
