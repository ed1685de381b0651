"""CPU threads of a block: their number is restored and changes nothing but rounding."""

import pytest
import torch

from pretrain.losses import CWRGPLoss
from pretrain.runtime.cpu import on_one_core


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_a_block_runs_on_one_core_and_leaves_the_number_of_threads(threads):
    with on_one_core():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    with pytest.raises(ZeroDivisionError), on_one_core():
        _ = 1 / 0
    assert torch.get_num_threads() == threads


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
