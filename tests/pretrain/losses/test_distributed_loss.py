"""Two and four gloo processes against one process that holds the whole batch."""

import copy
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from pretrain.config.loss import LossConfig
from pretrain.config.methods import INTLConfig
from pretrain.losses import build_loss
from pretrain.runtime.distributed import all_gather_with_grad, is_distributed, rank, world_size
from tests.pretrain.losses.compared import COMPARED

V, N, D = 2, 32, 12
CONFIGS = {
    "w-mse": LossConfig(name="w-mse", sub_batch=16, iterations=2),
    "w-mse smaller than a rank's part": LossConfig(name="w-mse", sub_batch=32),
    "groups": LossConfig(name="w-mse", sub_batch=16, groups=2, method="zca"),
    "batch-norm": LossConfig(name="batch-norm"),
    "none": LossConfig(name="none"),
    "cw-rgp": LossConfig(name="cw-rgp", sub_batch=4, groups=2),
    "cw-rgp with covariance": LossConfig(
        name="cw-rgp", sub_batch=4, groups=2, covariance_weight=0.1
    ),
    "cw-rgp with covariance of parts": LossConfig(
        name="cw-rgp", sub_batch=4, groups=2, covariance_weight=0.1, covariance_batch=8
    ),
    **COMPARED,
    "intl, momentum": INTLConfig(name="intl", momentum=0.9),
}


def images():
    return torch.randn(V, N, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network():
    torch.manual_seed(2)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, D)
    ).double()


def draws(config, world):
    """What the whole batch takes beside it; channel whitening's sub-batches stay within a part."""
    generator = torch.Generator().manual_seed(3)
    if getattr(config, "momentum", None) is not None:
        return {"target": torch.randn(1, N, D, generator=generator, dtype=torch.float64)}
    if not isinstance(config, LossConfig) or config.sub_batch is None:
        return {}
    part = N // world if config.over == "channels" else N
    rounds = [
        torch.cat([torch.randperm(part, generator=generator) + s for s in range(0, N, part)])
        for _ in range(config.iterations)
    ]
    shape = (config.iterations, N // config.sub_batch, V, D)
    given = {"batch_permutation": torch.stack(rounds)}
    if config.random_partition:
        given["channel_partition"] = torch.rand(shape, generator=generator).argsort(-1)
    return given


def part_of(given, config, number, world):
    """What one rank is given: all, its images, or for channel whitening its sub-batches."""
    size = N // world
    own = slice(number * size, (number + 1) * size)
    if "target" in given:
        return {"target": given["target"][:, own]}
    if not given or config.over == "batch":
        return given
    count = size // config.sub_batch
    return {
        "batch_permutation": given["batch_permutation"][:, own] - number * size,
        "channel_partition": given["channel_partition"][:, number * count : (number + 1) * count],
    }


def is_of_the_whole_batch(config):
    """Whether every rank returns the loss of the whole batch, not that of its part."""
    if isinstance(config, LossConfig):
        return config.over == "batch" or config.name == "batch-norm"
    return config.gathers and not config.takes_parts


def evaluate(model, x, config, given):
    loss = build_loss(config)
    embedded = model(x.flatten(0, 1)).view(*x.shape[:2], D)
    value = loss(embedded, **given)
    value.backward()
    return value.detach(), [p.grad.clone() for p in model.parameters()]


def start(number, world, port):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=number,
        world_size=world,
        timeout=timedelta(seconds=60),
    )


def compare_with_one_process(number, world, port, expected):
    start(number, world, port)
    try:
        size = N // world
        own = images()[:, number * size : (number + 1) * size]
        for name, config in CONFIGS.items():
            model = DistributedDataParallel(network())
            given = part_of(draws(config, world), config, number, world)
            value, gradients = evaluate(model, own, config, given)
            total = value / world
            dist.all_reduce(total)
            want, want_gradients = expected[name]
            torch.testing.assert_close(total, want, msg=lambda m, name=name: f"{name}: {m}")
            if is_of_the_whole_batch(config):
                torch.testing.assert_close(value, want)
            for got, wanted in zip(gradients, want_gradients, strict=True):
                torch.testing.assert_close(got, wanted, msg=lambda m, name=name: f"{name}: {m}")
        check_draws(own, number, expected)
        check_channel_whitening_sends_nothing(own)
    finally:
        dist.destroy_process_group()


def drawn_loss(x, name, seed):
    """The loss of `x`, its draws left to a generator with this seed."""
    embedded = x @ torch.randn(6, D, generator=torch.Generator().manual_seed(0)).double()
    return build_loss(CONFIGS[name])(embedded, generator=torch.Generator().manual_seed(seed))


def check_draws(own, number, expected):
    """Ranks whose generators disagree whiten the sub-batches that one process with rank 0's draws.

    A draw within each rank's part would whiten other sub-batches of the global batch.
    """
    for name in ("w-mse", "groups"):
        torch.testing.assert_close(drawn_loss(own, name, number), expected[f"{name}, drawn"])


def check_channel_whitening_sends_nothing(own):
    embedded = own @ torch.randn(6, D, generator=torch.Generator().manual_seed(0)).double()
    used = []
    real = dist.all_gather, dist.broadcast
    dist.all_gather = dist.broadcast = lambda *_, **__: used.append(1)
    try:
        build_loss(CONFIGS["cw-rgp"])(embedded)
    finally:
        dist.all_gather, dist.broadcast = real
    assert not used


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(function, world, *more):
    arguments = (world, free_port(), *more)
    mp.start_processes(function, args=arguments, nprocs=world, start_method="forkserver")


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_equal_one_in_value_and_gradient(world):
    expected = {
        name: evaluate(copy.deepcopy(network()), images(), config, draws(config, world))
        for name, config in CONFIGS.items()
    }
    for name in ("w-mse", "groups"):
        expected[f"{name}, drawn"] = drawn_loss(images(), name, 0)
        assert not torch.isclose(expected[f"{name}, drawn"], drawn_loss(images(), name, 1))
    run(compare_with_one_process, world, expected)


def gather_by_hand(number, world, port):
    start(number, world, port)
    try:
        part = torch.full((1, 2), float(number + 1), requires_grad=True)
        whole = all_gather_with_grad(part, 0)
        assert whole.tolist() == [[1.0, 1.0], [2.0, 2.0]]
        (whole * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
        want = [[[2.0, 20.0]], [[200.0, 2000.0]]][number]  # own gradient times two ranks
        assert part.grad.tolist() == want
    finally:
        dist.destroy_process_group()


def test_gather_by_hand():
    run(gather_by_hand, 2)


def test_without_a_process_group_there_is_one_process():
    x = torch.randn(2, 3)
    assert (world_size(), rank(), is_distributed()) == (1, 0, False)
    assert all_gather_with_grad(x, 1) is x
