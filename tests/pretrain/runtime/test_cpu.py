import threading

import pytest
import torch

from pretrain.losses import CWRGPLoss
from pretrain.runtime.cpu import in_parts, transposed


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_member_is_done_once_and_in_order(threads):
    x = torch.arange(7.0).reshape(7, 1, 1)
    parts = in_parts(lambda part: part * 2, x)
    assert len(parts) == threads
    assert torch.equal(torch.cat(parts), x * 2)


def test_there_are_no_more_parts_than_members(threads):
    assert len(in_parts(len, torch.zeros(1, 2, 2))) == 1
    assert len(in_parts(len, torch.zeros(2, 2, 2))) == min(threads, 2)
    assert len(in_parts(len, torch.zeros(9, 2, 2, device="meta"))) == 1


def test_workers_use_one_core_each_and_leave_the_caller_alone(threads):
    used = in_parts(lambda _: torch.get_num_threads(), torch.zeros(threads, 1))
    assert used == [1] * threads
    assert torch.get_num_threads() == threads


def test_faults_reach_the_caller_and_its_threads_are_as_before(threads):
    def fail(_):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        in_parts(fail, torch.zeros(4, 1))
    assert torch.get_num_threads() == threads


def test_parts_run_in_the_grad_and_inference_modes_of_the_caller(threads):
    def modes(*_):
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            assert in_parts(modes, torch.zeros(threads, 1)) == [modes()] * threads


def test_transposed_members_are_new_memory_rows_first():
    for x in (torch.rand(3, 70, 65), torch.rand(3, 65, 70).mT, torch.rand(2, 4, 1)):
        turned, before = transposed(x), x.clone()
        assert turned.is_contiguous() and torch.equal(turned, x.mT)
        turned.zero_()
        assert torch.equal(x, before)


@pytest.mark.parametrize("sub_batch", [4, 12])  # more sub-batches than threads, and a single one
def test_the_number_of_threads_changes_nothing_but_rounding(threads, sub_batch):
    x = torch.randn(3, 12, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_()
    loss = CWRGPLoss(sub_batch, 2, iterations=2)
    value = loss(x, generator=torch.Generator().manual_seed(1))
    value.backward()
    torch.set_num_threads(1)
    alone = x.detach().clone().requires_grad_()
    want = loss(alone, generator=torch.Generator().manual_seed(1))
    want.backward()
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(x.grad, alone.grad)
    assert loss.regularized_count == 0


def test_the_number_of_threads_may_change_between_forward_and_backward(threads):
    x = torch.randn(3, 12, 32, dtype=torch.float64, requires_grad=True)
    value = CWRGPLoss(4, 2)(x)
    torch.set_num_threads(threads % 3 + 1)
    value.backward()
    assert x.grad.isfinite().all()


@pytest.mark.timeout(30)
def test_a_thread_that_cannot_start_is_an_error_and_not_a_wait_for_ever(monkeypatch):
    before, started = torch.get_num_threads(), []
    torch.set_num_threads(5)
    alive = threading.active_count()
    start = threading.Thread.start

    def start_two(self):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    x = torch.arange(5.0).reshape(5, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_two)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            in_parts(lambda part: part + 1, x)
    assert len(started) == 2
    assert threading.active_count() == alive
    assert torch.get_num_threads() == 5
    assert torch.equal(torch.cat(in_parts(lambda part: part + 1, x)), x + 1)
    torch.set_num_threads(before)
