"""Two and four gloo processes take the steps of one that holds the whole batch, queue and all.

The encoder has no BatchNorm, nor have the heads, whose statistics are of a process's part.
"""

import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import build_loss
from pretrain.methods import build_model
from pretrain.models import SelfSupervisedModel, encoder
from pretrain.runtime.distributed import Processes, joined_processes
from pretrain.training.memory import memory_estimate
from pretrain.training.precision import parallel, without_averaging
from tests.pretrain import small_net

Make = Callable[..., PretrainConfig]
Result = tuple[list[Tensor], list[list[Tensor]], dict[str, Tensor]]
N, STEPS = 8, 3
LOSSES: dict[str, dict[str, Any]] = {
    "simsiam": {"name": "simsiam", "predictor_hidden": 3},
    "byol": {"name": "byol", "predictor_hidden": 6, "momentum": 0.5},
    "moco-v2": {"name": "moco-v2", "queue": 20, "momentum": 0.5},  # no multiple of the batch
    "intl": {"name": "intl", "momentum": 0.5},
}


def without_batchnorm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            setattr(module, name, nn.Identity())
        without_batchnorm(child)


def steps(config: PretrainConfig, processes: Processes, parts: int = 1) -> Result:
    """Return losses and gradients of each step, and the state after the last."""
    torch.manual_seed(2)
    model = build_model(config)
    for name in ("encoder", "momentum_encoder"):
        if hasattr(model, name):
            torch.manual_seed(3)
            plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh())
            setattr(model, name, plain.requires_grad_(name == "encoder"))
    without_batchnorm(model)
    model.double().train()
    torch.manual_seed(processes.rank)  # permutations are rank 0's
    wrapped, loss = parallel(model, processes), build_loss(config.loss)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    values, grads = [], []
    part = slice(processes.rank * N // processes.size, (processes.rank + 1) * N // processes.size)
    for step in range(STEPS):
        whole = torch.randn(2, N, 3, 2, 2, generator=torch.Generator().manual_seed(step)).double()
        model.set_progress(step / STEPS)
        optimizer.zero_grad()
        value = torch.zeros(())
        for number, views in enumerate(whole[:, part].chunk(parts, 1), start=1):
            with nullcontext() if number == parts else without_averaging(wrapped):
                _, embedding, beside = wrapped(views)
                own = loss(embedding, **beside) / parts
                own.backward()
            value = value + own.detach()
        optimizer.step()
        model.after_step()
        values.append(value)
        grads.append([p.grad.clone() for p in trained if p.grad is not None])
        assert len(grads[-1]) == len(trained)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return values, grads, state


def seen_by_the_branch(config: PretrainConfig) -> list[int]:
    """Return the images of the global batch that this process's branch is called on."""
    model: SelfSupervisedModel = build_model(config).train()
    seen: list[int] = []

    def note(_: nn.Module, images: tuple[Tensor]) -> None:
        seen.extend(int(image.mean()) for image in images[0])

    first = torch.distributed.get_rank() * 2
    numbers = torch.arange(first, first + 2).view(1, 2, 1, 1, 1).expand(2, 2, 3, 32, 32)
    model.get_submodule("momentum_encoder").register_forward_pre_hook(note)
    keys = model(numbers.float()).beside["keys"]
    model.after_step()
    by_one_process = model.state_dict()["queue"][first : first + 2]
    assert torch.equal(keys, by_one_process)
    return seen


def compare(
    rank: int, world: int, port: int, expected: dict[str, tuple[PretrainConfig, Result]]
) -> None:
    torch.set_num_threads(1)
    encoder.build_encoder = small_net.build_encoder
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with joined_processes() as processes:
        runs = [(name, *run, 1) for name, run in expected.items()]
        runs.append(("moco-v2", *expected["moco-v2"], 2))  # in parts of the batch
        for name, config, (values, grads, state), parts in runs:
            own_values, own_grads, own_state = steps(config, processes, parts)
            for value, want in zip(own_values, values, strict=True):
                mean = sum(v for (v,) in processes.all_gather([float(value)])) / world
                assert mean == pytest.approx(float(want), rel=1e-9), name
            for own, wanted in zip(own_grads, grads, strict=True):
                torch.testing.assert_close(own, wanted, msg=lambda m, name=name: f"{name}: {m}")
            assert own_state.keys() == state.keys()
            for key, value in own_state.items():
                torch.testing.assert_close(value, state[key], msg=lambda m, key=key: f"{key}: {m}")
            queues = processes.gather(own_state.get("queue", torch.zeros(1)))
            assert all(torch.equal(queue, queues[0]) for queue in queues)
        config = expected["moco-v2"][0]
        if rank == 0:
            memory_estimate(config, world)  # asks no other rank for anything
        torch.manual_seed(rank)
        seen = processes.gather(seen_by_the_branch(config))
        if rank == 0:
            images = [image for own in seen for image in own]
            assert sorted(images) == list(range(2 * world)) and images != sorted(images)


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_take_the_steps_of_one(tiny: Make, world: int) -> None:
    model = {"projector_hidden": 8, "embedding_dim": 4, "projector_layers": 2}
    alone = Processes(torch.device("cpu"))
    configs = {name: tiny(loss=loss, model=model) for name, loss in LOSSES.items()}
    expected = {name: (config, steps(config, alone)) for name, config in configs.items()}
    for _, grads, _ in (result for _, result in expected.values()):
        assert all(max(float(g.abs().max()) for g in each) > 1e-3 for each in grads)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(
        compare, args=(world, port, expected), nprocs=world, start_method="forkserver"
    )
