"""INTL against a plain float64 re-derivation, a case by hand, and what holds for it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.config.methods import INTLConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import build_loss
from pretrain.losses.base import Loss
from pretrain.losses.intl import INTLLoss
from pretrain.whitening import whiten

Embeddings = Callable[..., Tensor]


def intl(**settings: Any) -> Loss:
    return build_loss(INTLConfig.model_validate({"name": "intl", **settings}))


def iter_norm(view: Tensor, steps: int = 4) -> Tensor:
    """Variables `view` [k, n] by P <- (3 P - P^3 S / tr S) / 2, as IterNorm's paper has it."""
    centred = view - view.mean(1, keepdim=True)
    covariance = centred @ centred.T / (view.shape[1] - 1)
    trace, root = covariance.trace(), torch.eye(len(view), dtype=view.dtype)
    for _ in range(steps):
        root = 1.5 * root - 0.5 * root @ root @ root @ covariance / trace
    return root @ centred / trace.sqrt()


def plain(x: Tensor, over: str, momentum: bool = False) -> Tensor:
    """The mean over views beyond the first, of distance and trace losses; no trace of a target."""
    V, N, D = x.shape
    weight = 0.01 * (math.log2(N if over == "channels" else D) - 3)
    white = [iter_norm(view) if over == "channels" else iter_norm(view.T).T for view in x]
    if momentum:
        white[0] = white[0].detach()
    dim = 1 if over == "channels" else 0
    traces = [(y.var(dim) - 1).square().sum() for y in white]
    total = torch.zeros((), dtype=x.dtype)
    for y, trace in zip(white[1:], traces[1:], strict=True):
        total = total + 2 - 2 * F.cosine_similarity(y, white[0], dim=1).mean()
        total = total + weight * (trace if momentum else trace + traces[0])
    return total / (V - 1)


@pytest.mark.parametrize("over", ["channels", "batch"])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("shape", [(2, 16, 24), (3, 32, 12), (6, 16, 16)])
def test_equals_the_published_formula_in_value_and_gradient(
    embeddings: Embeddings, over: str, momentum: bool, shape: tuple[int, int, int]
) -> None:
    x = embeddings(*shape).requires_grad_()
    loss = intl(over=over)
    value = loss(x[1:], target=x[:1]) if momentum else loss(x)
    want = plain(x, over, momentum)
    torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(v, x)[0] for v in (value, want)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
    assert (gradients[0][0] == 0).all() == momentum
    single = loss(x[1:].float(), target=x[:1].float()) if momentum else loss(x.float())
    torch.testing.assert_close(single.double(), want, rtol=1e-5, atol=1e-6)


def test_two_images_by_hand() -> None:
    # Centred rows (1, -1), (2, -2) and (1, -1), (-1, 1): both S have rank 1 and traces 10 and 4.
    # A step has (3 - 1) / 2 = 1 on the direction of S / tr S: rows are divided by sqrt tr S
    # alone: variances 2/10 and 8/10, and 1/2 twice.
    x = torch.tensor([[[1.0, -1.0], [2.0, -2.0]], [[3.0, 1.0], [5.0, 7.0]]], dtype=torch.float64)
    white = [[[1.0, -1.0], [2.0, -2.0]], [[1.0, -1.0], [-1.0, 1.0]]]
    loss = intl(newton_iterations=1, trace_weight=0.5)
    for view, rows, trace in zip(x, white, (10, 4), strict=True):
        torch.testing.assert_close(loss.whitened(view), torch.tensor(rows).double() / trace**0.5)
    # the first image's views point the same way (0), the second's apart (4)
    want = 2.0 + 0.5 * (0.8**2 + 0.2**2 + 2 * 0.5**2)
    assert loss(x).item() == pytest.approx(want)
    assert loss(x[1:], target=x[:1]).item() == pytest.approx(2.0 + 0.5 * 2 * 0.5**2)


@pytest.mark.parametrize("over", ["channels", "batch"])
def test_gradcheck(embeddings: Embeddings, over: str) -> None:
    x = embeddings(3, 6, 5).requires_grad_()
    assert torch.autograd.gradcheck(intl(over=over, trace_weight=0.3), x)
    target, loss = embeddings(1, 6, 5), intl(over=over, trace_weight=0.3)
    assert torch.autograd.gradcheck(lambda rest: loss(rest, target=target), x)


def test_invariances(embeddings: Embeddings) -> None:
    x, loss = embeddings(3, 16, 12), intl()
    want = loss(x)
    offsets = torch.arange(16, dtype=x.dtype)[:, None]
    mirror = torch.linspace(-1, 1, 12, dtype=x.dtype)  # its channels' mean is 0
    mirrored = x - 2 * (x @ mirror)[..., None] * mirror / mirror.square().sum()
    images, channels = torch.randperm(16), torch.randperm(12)
    for alike in (7 * x, x + offsets, mirrored, x[:, images], x[..., channels], x[[0, 2, 1]]):
        torch.testing.assert_close(loss(alike), want)
    assert not torch.isclose(loss(x[[1, 0, 2]]), want)  # the first view is compared with all


def test_four_steps_over_channels_are_the_cores_iter_norm(embeddings: Embeddings) -> None:
    x = embeddings(2, 16, 12)[0].requires_grad_()
    for over in ("channels", "batch"):
        output = intl(over=over).whitened(x)
        want = whiten(x, over=over, method="newton", newton_iterations=4)
        torch.testing.assert_close(output, want.detach())
        assert not output.requires_grad
    # fewer images than channels, as published over the batch, need no full rank
    assert intl(over="batch")(embeddings(2, 8, 32)).isfinite()


def test_the_weight_follows_the_problem_and_is_never_negative() -> None:
    config = INTLConfig(name="intl")
    assert config.weight_of_trace(256, 8192) == pytest.approx(0.05)
    assert config.weight_of_trace(4, 8192) == 0.0
    assert INTLConfig(name="intl", over="batch").weight_of_trace(4, 2048) == pytest.approx(0.08)
    assert INTLConfig(name="intl", trace_weight=0.3).weight_of_trace(4, 4) == 0.3


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_scaled_embeddings_have_the_same_loss_and_a_scaled_gradient(
    embeddings: Embeddings, scale: float
) -> None:
    x = embeddings(2, 32, 16, dtype=torch.float32)
    pair = [(factor * x).requires_grad_() for factor in (1.0, scale)]
    values = [intl()(v) for v in pair]
    sum(values).backward()
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=0)
    first, second = (v.grad for v in pair)
    assert first is not None and second is not None
    assert (second * scale - first).norm() <= 1e-3 * first.norm()


def test_an_embedding_of_one_channel_is_refused_in_one_line(
    tiny: Callable[..., PretrainConfig],
) -> None:
    message = (
        "embedding of 1 channel has no variance over channels; use at least 2, or over 'batch'"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        intl()(torch.randn(2, 8, 1))
    with pytest.raises(ValueError, match=f"loss: {message}"):
        tiny(loss={"name": "intl"}, model={"embedding_dim": 1})
    assert intl(over="batch")(torch.randn(2, 8, 1)).isfinite()


def test_its_name_builds_it() -> None:
    assert type(build_loss(INTLConfig(name="intl"))) is INTLLoss
