from functools import partial

import pytest
import torch

from benchmarks.published_loops import plain_loss, plain_whiten
from benchmarks.whitening import (
    WHITENING_CASES,
    WhiteningCase,
    benchmark_whitening,
    interleaved_ms,
    peak_mb,
)
from pretrain.config.loss import LossConfig
from pretrain.losses.build import build_loss
from pretrain.whitening.functional import whiten

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["w-mse", "cw-rgp"])
def test_the_plain_loop_computes_the_same_loss(name):
    # one group and one sub-batch: nothing is left to chance but the order of the images
    sizes = (64, 3, 8) if name == "w-mse" else (8, 3, 32)
    config = LossConfig(name=name, sub_batch=sizes[0], groups=1)
    x = WhiteningCase("", config, *sizes).embeddings(CPU).requires_grad_()
    plain, ours = plain_loss(x, config), build_loss(config)(x)
    torch.testing.assert_close(ours, plain)
    gradients = [torch.autograd.grad(loss, x)[0] for loss in (ours, plain)]
    assert (gradients[0] - gradients[1]).norm() <= 1e-3 * gradients[1].norm()


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("name", ["w-mse", "cw-rgp"])
def test_plain_whitening_is_whitening(name, eps):
    groups = {"w-mse": 1, "cw-rgp": 2}[name]
    config = LossConfig(name=name, sub_batch=8, groups=groups, eps=eps)
    x = torch.randn(24, 16) if name == "w-mse" else torch.randn(6, 32)
    ours = partial(whiten, over=config.over, method=config.method, groups=groups, eps=eps)
    torch.testing.assert_close(plain_whiten(x, config), ours(x), rtol=1e-3, atol=1e-4)


def test_plain_whitening_deals_channels_to_groups():
    config, x, order = LossConfig(name="cw-rgp", sub_batch=6, groups=2), *cw_rgp_part()
    got = plain_whiten(x, config, order.tolist())
    want = whiten(x, over="channels", method="zca", groups=2, partition=order)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def cw_rgp_part():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 32, generator=generator), torch.randperm(32, generator=generator)


@pytest.mark.parametrize("name", ["w-mse", "cw-rgp"])
def test_the_plain_loop_reorders_channels_only_where_they_are_dealt_at_random(name, monkeypatch):
    orders = []

    def spy(x, config, order=None):
        orders.append(order)
        return plain_whiten(x, config, order)

    monkeypatch.setattr("benchmarks.published_loops.plain_whiten", spy)
    config = LossConfig(name=name, sub_batch=8, groups=2 if name == "cw-rgp" else 1)
    plain_loss(torch.randn(2, 16, 6 if name == "w-mse" else 32), config)
    assert len(orders) == 4
    assert all((order is None) == (name == "w-mse") for order in orders)


def test_there_is_a_table_for_each_number_of_threads(capsys, monkeypatch):
    case = WhiteningCase("tiny", LossConfig(name="w-mse", sub_batch=8), 16, 2, 4)
    monkeypatch.setattr("benchmarks.whitening.WHITENING_CASES", (case,))
    monkeypatch.setenv("COLUMNS", "120")
    before = torch.get_num_threads()
    benchmark_whitening(rounds=1, threads=[1, 2])
    assert torch.get_num_threads() == before
    printed = capsys.readouterr().out
    assert printed.index("1 threads") < printed.index("2 threads")
    assert printed.count("tiny") >= 2


def test_the_published_sizes_can_be_run():
    for case in WHITENING_CASES:
        assert case.config.check(case.batch, case.dim) == []
        assert case.embeddings(CPU).shape == (case.views, case.batch, case.dim)


def test_steps_take_turns_and_each_follows_one_of_its_own():
    calls = []
    steps = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    assert set(interleaved_ms(steps, 3, CPU)) == {"a", "b"}
    assert calls == ["a", "a", "b", "b"] * 4


def test_peak_memory_counts_what_is_alive_at_once():
    def two_then_one():
        a = torch.ones(1_000_000)  # 4 MB
        b = a + 1
        del a
        return b + 1

    assert peak_mb(two_then_one, CPU) == pytest.approx(8.0, abs=0.1)


def test_peak_memory_does_not_depend_on_the_threads():
    x = WHITENING_CASES[2].embeddings(CPU).requires_grad_()
    loss = build_loss(WHITENING_CASES[2].config)
    torch.autograd.backward(loss(x))  # what is allocated once is there before the measurement
    before = torch.get_num_threads()
    peaks = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            peaks.append(peak_mb(lambda: torch.autograd.backward(loss(x)), CPU))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.01)
    assert peaks[0] > 3 * x.numel() * 4 / 1e6


def test_a_step_that_fails_leaves_the_number_of_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            peak_mb(lambda: 1 / 0, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
