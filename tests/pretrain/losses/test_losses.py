import pytest
import torch

from pretrain.config.loss import LossConfig
from pretrain.losses.build import CWRGPLoss, WMSELoss, build_loss
from pretrain.losses.whitening import covariance_penalty
from pretrain.whitening.functional import full_precision, whiten

# --- against whitening done step by step -----------------------------------------------------


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


def test_gradcheck_with_the_covariance_term(embeddings):
    loss = CWRGPLoss(4, 2, iterations=2, covariance_weight=0.3)
    x = embeddings(3, 8, 12).requires_grad_()

    def value(x):
        return loss(x, generator=torch.Generator().manual_seed(2))

    assert torch.autograd.gradcheck(value, x)


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


# --- hand-computed ---------------------------------------------------------------------------


def test_opposite_and_equal_views_by_hand():
    # one whitened channel: +-1 after normalisation. View 2 flips one pair of signs of four.
    x = torch.tensor([[[1.0], [1], [-1], [-1]], [[1.0], [-1], [1], [-1]]], dtype=torch.float64)
    assert WMSELoss(4)(x).item() == pytest.approx((0 + 4 + 4 + 0) / 4)
    # without normalisation S = 4/3: outputs +-sqrt(3/4), squared distance 3 where they differ
    assert WMSELoss(4, normalize=False)(x).item() == pytest.approx((0 + 3 + 3 + 0) / 4)
    assert WMSELoss(4)(torch.stack([x[0], x[0]])).item() == pytest.approx(0.0, abs=1e-15)


def test_controls_by_hand():
    x = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[4.0, 3.0], [5.0, 0.0]]], dtype=torch.float64)
    plain = build_loss(LossConfig(name="none"))
    assert plain(x).item() == pytest.approx(((2 - 2 * 24 / 25) + 2) / 2)
    euclidean = build_loss(LossConfig(name="none", normalize=False))
    assert euclidean(x).item() == pytest.approx((1 + 1 + 25 + 4) / 4)
    # two samples: BatchNorm gives +-1 in every channel; here the views have opposite signs in both
    standard = build_loss(LossConfig(name="batch-norm", eps=1e-9))
    flipped = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[4.0, 1.0], [5.0, 6.0]]]).double()
    assert standard(flipped).item() == pytest.approx(4.0)
    assert plain.regularized_count == standard.regularized_count == 0


def test_batch_norm_control_is_batch_norm(embeddings):
    x = embeddings(2, 16, 6).requires_grad_()
    loss = build_loss(LossConfig(name="batch-norm", normalize=False))
    a, b = (torch.nn.functional.batch_norm(v, None, None, training=True) for v in x)
    torch.testing.assert_close(loss(x), (a - b).square().mean())
    assert torch.autograd.gradcheck(loss, x)


def test_covariance_penalty_by_hand():
    # centred samples (1,-1), (2,-2): covariance 4/1 off the diagonal, twice, squared, over N = 2
    x = torch.tensor([[[5.0, 3.0], [2.0, -2.0]]], dtype=torch.float64)
    assert covariance_penalty(x).item() == pytest.approx((16 + 16) / 2)


def test_a_covariance_batch_takes_the_mean_over_parts_of_the_batch():
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = {"name": "cw-rgp", "sub_batch": 4, "groups": 2}
    given = {"batch_permutation": torch.arange(12)[None], "channel_partition": torch.tensor([])}
    without = build_loss(LossConfig(**settings))(x, **given)
    term = {"covariance_weight": 0.5, "covariance_batch": 6}
    loss = build_loss(LossConfig(**settings, **term))
    penalties = [covariance_penalty(x[:, :6]), covariance_penalty(x[:, 6:])]
    torch.testing.assert_close(loss(x, **given), without + 0.5 * sum(penalties) / 2)
    with pytest.raises(ValueError, match="batch of 8 images is not divisible by covariance_batch"):
        loss(x[:, :8])


def test_a_small_covariance_beside_large_variances_does_not_cancel():
    # covariance 1e3 (1 - 0.999) / 3; the square of the first sample's variance, 2e6 / 3, holds
    # all digits of float32
    x = torch.tensor([[[1e3, -1e3, 0.0, 0.0], [1.0, 0.999, -1.0, -0.999]]])
    assert covariance_penalty(x).item() == pytest.approx((1 / 3) ** 2, rel=1e-3)


# --- backward passes -------------------------------------------------------------------------


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


# --- invariances -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [WMSELoss(24), CWRGPLoss(8, 1)], ids=["w-mse", "cw-rgp"])
def test_order_of_images_views_scale_and_offset_do_not_matter(embeddings, loss):
    shape = (3, 24, 8) if isinstance(loss, WMSELoss) else (3, 8, 24)
    x = embeddings(*shape)
    want = loss(x)
    shuffled = x[:, torch.randperm(shape[1])]
    for other in (shuffled, x.flip(0), 1e6 * x, 1e-6 * x, x - 5.0):
        torch.testing.assert_close(loss(other), want)


def test_permuting_channels_leaves_one_group_of_zca_but_not_cholesky(embeddings):
    x, order = embeddings(2, 24, 8), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    for loss in (WMSELoss(24, method="zca"), CWRGPLoss(6, 1)):
        y = x if isinstance(loss, WMSELoss) else embeddings(2, 6, 8)
        torch.testing.assert_close(loss(y[..., order]), loss(y))
    assert (WMSELoss(24)(x[..., order]) - WMSELoss(24)(x)).abs() > 1e-3


def test_rotating_features_leaves_zca_but_not_cholesky(embeddings):
    # ZCA turns its output along (y -> y R), so distances stay. Cholesky's output turns by another
    # rotation in each view. Channel whitening sees only x xᵀ, so any rotation that keeps the
    # all-ones direction of the centring leaves it.
    x = embeddings(2, 24, 8)
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator).double())[0]
    torch.testing.assert_close(WMSELoss(24, method="zca")(x @ turn), WMSELoss(24, method="zca")(x))
    assert (WMSELoss(24)(x @ turn) - WMSELoss(24)(x)).abs() > 1e-3


# --- randomness ------------------------------------------------------------------------------


def test_draws_come_from_the_generator_and_differ_per_round_sub_batch_and_view(embeddings):
    x, loss = embeddings(2, 16, 32), CWRGPLoss(4, 2)
    first, again = (loss(x, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    generator = torch.Generator().manual_seed(7)
    state = torch.get_rng_state()
    values = [loss(x, generator=generator).item() for _ in range(4)]
    assert len(set(values)) == 4
    assert torch.equal(torch.get_rng_state(), state)
    drawn = loss._partition(x, None, generator).reshape(-1, 32)
    assert len({tuple(order.tolist()) for order in drawn}) == len(drawn) == 4 * 2
    assert torch.equal(drawn.sort(-1).values, torch.arange(32).expand(8, 32))


def test_an_empty_partition_keeps_channels_in_order(embeddings):
    x = embeddings(2, 4, 16)
    in_order = torch.arange(16).expand(1, 1, 2, 16)
    loss = CWRGPLoss(4, 2)
    torch.testing.assert_close(
        loss(x, channel_partition=torch.empty(0)), loss(x, channel_partition=in_order)
    )


# --- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "loss",
    [WMSELoss(32), CWRGPLoss(8, 2), CWRGPLoss(8, 2, covariance_weight=0.3)],
    ids=["w-mse", "cw-rgp", "covariance"],
)
def test_autocast_does_not_reach_the_whitening(embeddings, loss, dtype):
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
        with full_precision(torch.device("cuda")):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        with full_precision(torch.device("cpu")):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")


# --- faults ----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["batch-norm", "none"])
def test_controls_refuse_a_batch_of_one_and_bear_constant_embeddings(name):
    loss = build_loss(LossConfig(name=name))
    with pytest.raises(ValueError, match="batch of 1 images; use at least 2"):
        loss(torch.randn(2, 1, 4))
    x = torch.full((2, 8, 4), 3.7, requires_grad=True)
    loss(x).backward()
    assert x.grad.isfinite().all()


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


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WMSELoss(1), "sub_batch"),
        (lambda: WMSELoss(64, iterations=0), "iterations"),
        (lambda: WMSELoss(64, method="svd"), "method"),
        (lambda: WMSELoss(64, eps=-1.0), "eps"),
        (lambda: CWRGPLoss(64, 0), "groups"),
        (lambda: CWRGPLoss(64, 2, covariance_weight=-0.1), "covariance_weight"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
