"""Memory of the hand-written derivatives: freed with the result, and by the backward pass."""

import gc
import weakref

import pytest
import torch

from pretrain.losses import CWRGPLoss, WMSELoss
from pretrain.losses.base import pairwise_mse
from pretrain.whitening import whiten
from pretrain.whitening.inverse_sqrt import METHODS

USES = {
    "w-mse": lambda x: WMSELoss(16)(x, generator=torch.Generator().manual_seed(1)),
    "cw-rgp": lambda x: CWRGPLoss(4, 2)(x, generator=torch.Generator().manual_seed(1)),
    "pairs": lambda x: pairwise_mse(x, normalize=True),
    **{
        f"{method} over {over}": lambda x, method=method, over=over: whiten(
            x if over == "batch" else x.mT, over=over, method=method
        )
        for method, over in zip(METHODS, ("batch", "channels") * 2, strict=True)
    },
}


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 32, 8, generator=generator, requires_grad=True)


def large_tensors():
    """The memory of all tensors of more than one number that Python holds."""
    alive = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    dense = [tensor for tensor in alive if tensor.layout is torch.strided and not tensor.is_meta]
    return {memory(tensor) for tensor in dense if tensor.numel() > 1}


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


def number(result):
    """A number whose derivative with respect to whitened samples is not zero."""
    return (result * torch.linspace(0.5, 2.0, result.numel()).view(result.shape)).sum()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("backward", [True, False])
def test_all_goes_with_the_last_name_of_the_result(x, use, backward, threads):
    gc.collect()
    before = large_tensors()
    gc.disable()  # reference counts alone must free it
    try:
        result = USES[use](x)
        if backward:
            number(result).backward()
        gone = weakref.ref(result)
        del result
        assert gone() is None
        assert large_tensors() - before <= ({memory(x.grad)} if backward else set())
    finally:
        gc.enable()


@pytest.mark.parametrize("use", USES)
def test_a_backward_pass_frees_what_it_used(x, use, threads):
    before = large_tensors()
    result = USES[use](x)
    number(result).backward()
    assert large_tensors() - before <= {memory(x.grad), memory(result)}


@pytest.mark.parametrize("use", USES)
def test_a_second_backward_pass_needs_retain_graph(x, use):
    result = number(USES[use](x))
    (first,) = torch.autograd.grad(result, x, retain_graph=True)
    (second,) = torch.autograd.grad(result, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(result, x)


@pytest.mark.parametrize("use", USES)
def test_a_result_may_be_used_twice_in_one_graph(x, use):
    (once,) = torch.autograd.grad(number(USES[use](x)), x)
    result = USES[use](x)
    (thrice,) = torch.autograd.grad(number(result) + number(2 * result), x)
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-4, atol=1e-5)
    assert once.norm() > 1e-4


@pytest.mark.parametrize("use", USES)
def test_hooks_on_saved_tensors_see_what_is_kept(x, use):
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = USES[use](x)
    (gradient,) = torch.autograd.grad(number(result), x)
    (want,) = torch.autograd.grad(number(USES[use](x)), x)
    assert max(kept) >= x.numel() // torch.get_num_threads()
    assert torch.equal(gradient, want)
