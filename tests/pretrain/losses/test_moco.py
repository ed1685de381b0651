"""MoCo's loss by hand, against lightly's with a memory bank, and on degenerate embeddings."""

import math

import pytest
import torch

from pretrain.config.methods import MoCoConfig
from pretrain.losses import build_loss
from pretrain.losses.base import normalized
from pretrain.losses.moco import MoCoLoss
from tests.pretrain.losses.test_degenerate import CASE_NAMES, degenerate


def moco(temperature=0.2, queue=64):
    return build_loss(MoCoConfig(name="moco-v2", temperature=temperature, queue=queue))


def given(embeddings, N=6, D=5, K=16, dtype=torch.float64):
    """Queries [1, N, D], keys [N, D], queue [K, D] of unit vectors."""
    x = embeddings(2, N, D, dtype=dtype)
    queue = normalized(torch.randn(K, D, generator=torch.Generator().manual_seed(7)).to(dtype))
    return x[:1], normalized(x[1]), queue


def test_by_hand():
    """Two queries (1, 0) and (0, 2); keys (1, 0) and (1, 0); a queue of (0, 1) and (-1, 0)."""
    queries = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(0) + math.exp(-2)))
    second = -math.log(math.exp(0) / (math.exp(0) + math.exp(2) + math.exp(0)))
    value = moco(temperature=0.5)(queries, keys=keys, queue=queue)
    assert value.item() == pytest.approx((first + second) / 2, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.2, 0.07, 1.0])
def test_equals_lightlys_with_a_memory_bank_in_value_and_gradient(embeddings, temperature):
    lightly = pytest.importorskip("lightly.loss")
    queries, keys, queue = given(embeddings)
    queries.requires_grad_()
    value = moco(temperature)(queries, keys=keys, queue=queue)
    theirs = lightly.NTXentLoss(temperature=temperature, memory_bank_size=(16, 5))
    theirs.memory_bank.bank = queue.clone()
    want = theirs(queries[0], keys)
    torch.testing.assert_close(value, want, rtol=1e-6, atol=1e-9)
    (got,), (wanted,) = (torch.autograd.grad(each, queries) for each in (value, want))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)


def test_gradcheck_and_no_gradient_of_keys(embeddings):
    queries, keys, queue = given(embeddings)
    keys.requires_grad_()
    queries.requires_grad_()
    loss = moco()
    assert torch.autograd.gradcheck(lambda q: loss(q, keys=keys, queue=queue), queries)
    loss(queries, keys=keys, queue=queue).backward()
    assert keys.grad is None and queries.grad.abs().max() > 0


def test_scale_order_and_parts_of_the_batch_do_not_matter(embeddings):
    queries, keys, queue = given(embeddings, N=8)
    loss = moco()
    want = loss(queries, keys=keys, queue=queue)
    order = torch.randperm(8)
    for other in (
        loss(1e6 * queries, keys=keys, queue=queue.flip(0)),
        loss(queries[:, order], keys=keys[order], queue=queue),
        sum(
            loss(part, keys=own, queue=queue)
            for part, own in zip(queries.chunk(4, 1), keys.chunk(4), strict=True)
        )
        / 4,
    ):
        torch.testing.assert_close(other, want)
    assert not torch.isclose(loss(queries, keys=keys.roll(1, 0), queue=queue), want)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASE_NAMES)
def test_degenerate_embeddings_have_a_finite_loss_and_gradient(embeddings, case, dtype, scale):
    x = scale * degenerate(embeddings(2, 32, 16, dtype=dtype))[case]
    queries, keys = x[:1].clone().requires_grad_(), normalized(x[1])
    for queue in (torch.randn(64, 16, dtype=dtype), torch.zeros(64, 16), keys.repeat(2, 1)):
        value = moco()(queries, keys=keys, queue=normalized(queue))
        (gradient,) = torch.autograd.grad(value, queries)
        assert 0 <= value <= math.log(64 + 1) + 2 / 0.2 and gradient.isfinite().all()
        assert gradient[queries.detach().norm(dim=-1) == 0].abs().sum() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", ["queries", "keys", "queue"])
def test_non_finite_vectors_are_not_hidden(embeddings, bad, place):
    vectors = dict(zip(("queries", "keys", "queue"), given(embeddings), strict=True))
    vectors[place].view(-1, 5)[2, 1] = bad
    queries = vectors.pop("queries").requires_grad_()
    assert not moco()(queries, **vectors).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_it(embeddings, dtype):
    queries, keys, queue = given(embeddings, N=16, D=16, dtype=torch.float32)
    queries = queries.to(dtype).requires_grad_()
    want = moco()(queries.float(), keys=keys, queue=queue)
    with torch.autocast("cpu", dtype=dtype):
        value = moco()(queries, keys=keys, queue=queue)
        value.backward()
    assert value.dtype == torch.float32 and torch.equal(value, want)
    assert queries.grad.dtype == dtype and queries.grad.abs().max() > 0


def test_what_does_not_go_together_is_refused(embeddings):
    queries, keys, queue = given(embeddings)
    shapes = r"queries \[1, 6, 5\], keys \[5, 5\], queue \[16, 5\]: want \[1, N, D\], \[N, D\]"
    with pytest.raises(ValueError, match=shapes):
        moco()(queries, keys=keys[:5], queue=queue)
    with pytest.raises(ValueError, match=r"queue \[16, 4\]: want"):
        moco()(queries, keys=keys, queue=queue[:, :4])
    with pytest.raises(ValueError, match=r"queries \[2, 6, 5\]"):
        moco()(queries.repeat(2, 1, 1), keys=keys, queue=queue)
    with pytest.raises(ValueError, match="queue of 4 keys cannot take those of a batch of 6"):
        moco(queue=4)(queries, keys=keys, queue=queue[:4])


def test_its_name_builds_it() -> None:
    assert type(build_loss(MoCoConfig(name="moco-v2"))) is MoCoLoss
