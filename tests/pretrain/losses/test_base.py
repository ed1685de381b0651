"""The whitening losses against whitening done step by step, and what holds for all of them."""

import pytest
import torch

from pretrain.config.loss import LossConfig
from pretrain.losses import CWRGPLoss, WMSELoss, build_loss
from pretrain.losses.base import checked_views, differentiated
from pretrain.whitening import whiten
from pretrain.whitening.functional import full_precision
from tests.pretrain.losses.compared import COMPARED


def step_by_step(x, config, permutation, partition):
    """The loss as the papers write it: loops over rounds, sub-batches, views and pairs."""
    V = len(x)
    values = []
    for t in range(config.iterations):
        for s, rows in enumerate(permutation[t].split(config.sub_batch)):
            white = [
                whiten(
                    x[v, rows],
                    over=config.over,
                    method=config.method,
                    groups=config.groups,
                    partition=None if partition is None else partition[t, s, v],
                    eps=config.eps,
                    newton_iterations=config.newton_iterations,
                )
                for v in range(V)
            ]
            if config.normalize:
                white = [y / y.norm(dim=-1, keepdim=True) for y in white]
            for i in range(V):
                for j in range(i):
                    square = (white[i] - white[j]).square()
                    values.append(square.sum(-1).mean() if config.normalize else square.mean())
    return torch.stack(values).mean()


@pytest.mark.parametrize("over", ["batch", "channels"])
@pytest.mark.parametrize("method", ["cholesky", "zca", "newton", "pca"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_whitening_step_by_step(embeddings, over, method, groups, normalize):
    V, N, D, sub_batch, T = (3, 24, 10, 12, 2) if over == "batch" else (3, 12, 20, 4, 2)
    config = LossConfig(
        name="whitening",
        over=over,
        method=method,
        groups=groups,
        normalize=normalize,
        sub_batch=sub_batch,
        iterations=T,
        eps=0.05,
    )
    generator = torch.Generator().manual_seed(5)
    permutation = torch.stack([torch.randperm(N, generator=generator) for _ in range(T)])
    partition = None
    if groups > 1:
        partition = torch.rand(T, N // sub_batch, V, D, generator=generator).argsort(-1)
    x = embeddings(V, N, D).requires_grad_()
    loss = build_loss(config)(x, batch_permutation=permutation, channel_partition=partition)
    want = step_by_step(x, config, permutation, partition)
    torch.testing.assert_close(loss, want)
    gradients = [torch.autograd.grad(value, x)[0] for value in (loss, want)]
    torch.testing.assert_close(*gradients)


def test_whitened_output_is_that_of_the_loss_and_draws_nothing(embeddings):
    wmse, cwrgp = WMSELoss(12, groups=2, method="zca"), CWRGPLoss(4, 2, eps=0.1)
    for loss, D, options in (
        (wmse, 10, {"over": "batch"}),
        (cwrgp, 20, {"over": "channels", "eps": 0.1}),
    ):
        x, state = embeddings(2, 24, D)[0].requires_grad_(), torch.get_rng_state()
        output = loss.whitened(x)
        want = [whiten(part, method="zca", groups=2, **options) for part in x.split(loss.sub_batch)]
        torch.testing.assert_close(output, torch.cat(want).detach())
        assert not output.requires_grad
        assert torch.equal(torch.get_rng_state(), state)
        assert len(loss.whitened(x[:23])) == (12 if loss is wmse else 20)
    constant = CWRGPLoss(4, 2)
    assert constant.whitened(torch.ones(8, 20)).isfinite().all()
    assert constant.regularized_count == 0


@pytest.mark.parametrize(
    "loss",
    [WMSELoss(8), WMSELoss(8, method="zca", groups=2), CWRGPLoss(4, 2, covariance_weight=0.3)],
    ids=["cholesky", "groups", "cw-rgp"],
)
def test_any_layout_scale_and_number_of_backward_passes(embeddings, loss):
    def value(x):
        return loss(x, generator=torch.Generator().manual_seed(0))

    x = embeddings(2, 16, 12)[..., : 6 if isinstance(loss, WMSELoss) else 12]
    plain = x.clone(memory_format=torch.contiguous_format).requires_grad_()
    (want,) = torch.autograd.grad(value(plain), plain)
    wide = torch.zeros(16, 14, 4, dtype=x.dtype)
    wide[:, 1 : x.shape[2] + 1, ::2] = x.permute(1, 2, 0)
    before = wide.clone()
    strided = wide.requires_grad_()[:, 1 : x.shape[2] + 1, ::2].permute(2, 0, 1)
    result = value(strided)
    for factor in (1.0, 2.0**16):  # the second as fp16's loss scaling would
        (got,) = torch.autograd.grad(factor * result, strided, retain_graph=True)
        torch.testing.assert_close(got, factor * want)
    torch.autograd.grad(result, strided)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(result, strided)
    assert torch.equal(wide, before)
    with torch.no_grad():
        quiet = value(strided)
    assert torch.equal(quiet, result) and not quiet.requires_grad
    assert not value(x).requires_grad


def test_a_loss_seen_in_inference_mode_can_still_be_trained_and_loaded():
    x, loss = torch.ones(2, 8, 24), CWRGPLoss(4, 2)
    with torch.inference_mode():
        loss(x)
    assert loss.regularized_count > 0
    loss.load_state_dict(CWRGPLoss(4, 2).state_dict())
    assert loss.regularized_count == 0
    with torch.inference_mode():
        loss(x)
    counted = loss.regularized_count
    loss(x.clone().requires_grad_()).backward()
    assert loss.regularized_count == 2 * counted > 0


@pytest.mark.parametrize("loss", [WMSELoss(24), CWRGPLoss(8, 1)], ids=["w-mse", "cw-rgp"])
def test_order_of_images_views_scale_and_offset_do_not_matter(embeddings, loss):
    shape = (3, 24, 8) if isinstance(loss, WMSELoss) else (3, 8, 24)
    x = embeddings(*shape)
    want = loss(x)
    shuffled = x[:, torch.randperm(shape[1])]
    for other in (shuffled, x.flip(0), 1e6 * x, 1e-6 * x, x - 5.0):
        torch.testing.assert_close(loss(other), want)


@pytest.mark.parametrize("config", COMPARED.values(), ids=COMPARED)
def test_without_whitening_order_of_images_and_views_does_not_matter(embeddings, config):
    x, loss = embeddings(3, 24, 8), build_loss(config)
    want = loss(x)
    orders = [[0, 2, 1]] if config.name == "intl" else [[2, 1, 0], [1, 2, 0]]  # of the others
    for other in (x[:, torch.randperm(24)], *(x[order] for order in orders)):
        torch.testing.assert_close(loss(other), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "loss",
    [
        WMSELoss(32), CWRGPLoss(8, 2), CWRGPLoss(8, 2, covariance_weight=0.3),
        *map(build_loss, COMPARED.values()),
    ],
    ids=["w-mse", "cw-rgp", "covariance", *COMPARED],
)  # fmt: skip
def test_autocast_does_not_reach_the_loss(embeddings, loss, dtype):
    x = embeddings(2, 32, 16, dtype=torch.float32)

    def value_and_gradient(x, autocast):
        x = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            value = loss(x, generator=torch.Generator().manual_seed(0))
            value.backward()
        assert value.dtype == torch.float32
        return value, x.grad

    plain, gradient = value_and_gradient(x, autocast=False)
    inside, inside_gradient = value_and_gradient(x, autocast=True)
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)
    torch.testing.assert_close(inside_gradient, gradient, rtol=0, atol=0)
    rounded, rounded_gradient = value_and_gradient(x.to(dtype), autocast=True)
    same, _ = value_and_gradient(x.to(dtype).float(), autocast=False)
    torch.testing.assert_close(rounded, same, rtol=0, atol=0)
    torch.testing.assert_close(rounded, plain, rtol=0.05, atol=0.01)
    assert rounded_gradient.dtype == dtype


def test_reduced_matmul_precision_does_not_reach_the_whitening(embeddings):
    x = embeddings(2, 32, 16, dtype=torch.float32)
    order, loss = torch.arange(32)[None], WMSELoss(32, method="zca")
    want = loss(x, batch_permutation=order)
    torch.set_float32_matmul_precision("medium")
    try:
        torch.testing.assert_close(loss(x, batch_permutation=order), want, rtol=0, atol=0)
        assert torch.get_float32_matmul_precision() == "medium"
        if not hasattr(torch.backends.mkldnn, "matmul"):  # before torch 2.9
            return
        with full_precision(torch.device("cuda")):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        with full_precision(torch.device("cpu")):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("config", COMPARED.values(), ids=COMPARED)
def test_neither_pass_of_a_loss_is_made_in_reduced_precision(embeddings, config):
    """Nor does the other float64 embeddings lose digits: all differences are those of float32."""
    x = embeddings(2, 32, 48, dtype=torch.float32)
    results = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            value = build_loss(config)(leaf := x.clone().requires_grad_())
            value.backward()
        finally:
            torch.set_float32_matmul_precision("highest")
        results.append((value, leaf.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    exact = build_loss(config)(leaf := x.double().requires_grad_())
    exact.backward()
    assert exact.dtype == torch.float64
    torch.testing.assert_close(results[0][0].double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(results[0][1].double(), leaf.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("config", COMPARED.values(), ids=COMPARED)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 4), "batch of 1 images; use at least 2"),
        ((2, 0, 4), "batch of 0 images; use at least 2"),
        ((1, 8, 4), "at least 2 views, got \\[1, 8, 4\\]"),
        ((8, 4), "at least 2 views, got \\[8, 4\\]"),
    ],
)
def test_sizes_that_cannot_work_are_refused_without_whitening(config, shape, message):
    with pytest.raises(ValueError, match=message):
        build_loss(config)(torch.randn(shape))


@pytest.mark.parametrize(
    ("loss", "shape", "message"),
    [
        (WMSELoss(16), (2, 32, 16), "needs more than 16 samples, got 16; use a sub-batch of"),
        (WMSELoss(12), (2, 32, 4), "batch of 32 images is not divisible by sub_batch 12; choose"),
        (CWRGPLoss(8, 3), (2, 32, 16), "dimension 16 is not divisible by 3 groups; choose"),
        (CWRGPLoss(8, 2), (1, 32, 16), "at least 2 views, got \\[1, 32, 16\\]"),
        (CWRGPLoss(8, 2), (32, 16), "at least 2 views, got \\[32, 16\\]"),
    ],
)
def test_what_cannot_work_is_refused(loss, shape, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.randn(shape))


def test_newton_works_where_full_rank_is_out_of_reach(embeddings):
    settings = {"name": "whitening", "over": "channels", "method": "newton", "sub_batch": 16}
    loss, x = build_loss(LossConfig(**settings)), embeddings(2, 16, 8).requires_grad_()
    value = loss(x)
    value.backward()
    assert 0 < value < 4
    assert x.grad.isfinite().all()


def test_given_draws_must_fit(embeddings):
    x, loss = embeddings(2, 8, 16), CWRGPLoss(4, 2)
    with pytest.raises(ValueError, match=r"batch_permutation has shape \[2, 8\], want \[1, 8\]"):
        loss(x, batch_permutation=torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"channel_partition has shape .* want \[1, 2, 2, 16\]"):
        loss(x, channel_partition=torch.zeros(1, 2, 1, 16))
    with pytest.raises(ValueError, match=r"batch_permutation is not a permutation of 0\.\.7"):
        loss(x, batch_permutation=torch.zeros(1, 8))


def test_a_derivative_made_in_the_forward_pass_is_the_functions():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    calls = []

    def function(x):
        calls.append(torch.is_grad_enabled())
        return x.exp().sum().square()

    (want,) = torch.autograd.grad(5 * function(x), x)
    value = differentiated(function, x)
    torch.testing.assert_close(value, function(x).detach())
    torch.testing.assert_close(torch.autograd.grad(5 * value, x)[0], want)
    calls.clear()
    assert not differentiated(function, x.detach()).requires_grad and calls == [False]


@pytest.mark.parametrize("shape", [(1, 8, 4), (8, 4), (2, 2, 8, 4)])
def test_embeddings_are_of_two_views_or_more(shape):
    with pytest.raises(
        ValueError, match=r"want \[V views, N batch, D\] with at least 2 views, got"
    ):
        checked_views(torch.zeros(shape))


@pytest.mark.parametrize("views", [[torch.zeros(8, 4)] * 2, (torch.zeros(8, 4),) * 2])
def test_views_want_to_be_stacked(views):
    kind = type(views).__name__
    wanted = rf"^embeddings want one tensor \[V, N, D\], got {kind}: torch.stack them$"
    for config in (LossConfig(name="w-mse", sub_batch=8), LossConfig(name="none")):
        with pytest.raises(ValueError, match=wanted):
            build_loss(config)(views)


@pytest.mark.parametrize(
    ("given", "kept"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_the_loss_is_made_in_float32_at_least(given, kept):
    views = torch.zeros(2, 8, 4, dtype=getattr(torch, given))
    assert checked_views(views).dtype == getattr(torch, kept)
