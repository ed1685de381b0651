"""Whitening by hand, what it makes of covariances, its invariances, types and faults."""

import doctest
from types import SimpleNamespace

import pytest
import torch

from pretrain.whitening import functional, whiten
from pretrain.whitening.functional import AXES, ChannelGroups, full_precision
from pretrain.whitening.inverse_sqrt import METHODS

D64 = torch.float64
has_switches = pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"), reason="torch 2.9 has a switch for each device"
)


def test_cholesky_over_the_batch_by_hand():
    # centred columns (1,-1,0,0)*3 and (0,0,2,-2): S = diag(18, 8)/3 = diag(6, 8/3)
    x = torch.tensor([[4.0, 5.0], [-2.0, 5.0], [1.0, 7.0], [1.0, 3.0]], dtype=D64)
    want = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=D64) * 1.5**0.5
    for method in METHODS:
        got = whiten(x, over="batch", method=method)
        if method == "pca":  # largest variance first (here it is first), signs arbitrary
            got = got * torch.sign(got[[0, 2], [0, 1]])
        torch.testing.assert_close(got, want)


def test_correlated_pair_by_hand():
    # S = [[2, 1], [1, 2]] / (n-1) * ... built from rows with sum of squares known
    x = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=D64)  # S = [[1, .5], [.5, 1]]
    lower = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]], dtype=D64)
    torch.testing.assert_close(
        whiten(x, over="batch", method="cholesky"), x @ torch.linalg.inv(lower).T
    )
    a, b = 1.5**-0.5, 0.5**-0.5  # inverse roots of the eigenvalues 1.5 (1,1) and 0.5 (1,-1)
    root = 0.5 * torch.tensor([[a + b, a - b], [a - b, a + b]], dtype=D64)
    torch.testing.assert_close(whiten(x, over="batch", method="zca"), x @ root)


def test_channel_whitening_of_two_samples_by_hand():
    # orthogonal, centred samples: S = diag(4, 16)/3, so each is divided by its own deviation
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, -2.0, -2.0]], dtype=D64)
    want = torch.sign(x) * 0.75**0.5
    torch.testing.assert_close(whiten(x, over="channels", method="zca"), want)
    torch.testing.assert_close(whiten(x + 7.0, over="channels", method="cholesky"), want)


def test_shrinkage_by_hand():
    x = torch.tensor([[3.0], [-3.0]], dtype=D64)  # S = 18; 0.5 * 18 + 0.5 = 9.5
    got = whiten(x, over="batch", method="zca", eps=0.5)
    torch.testing.assert_close(got, x / 9.5**0.5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("over", AXES)
@pytest.mark.parametrize("groups", [1, 4])
def test_output_covariance_is_the_identity(over, method, groups, features, covariance):
    shape = (3, 40, 16) if over == "batch" else (3, 6, 48)
    partition = torch.randperm(shape[-1], generator=torch.Generator().manual_seed(3))
    y = whiten(features(*shape), over=over, method=method, groups=groups, partition=partition)
    got = covariance(y, over, groups, partition)
    if over == "channels" and groups > 1:  # centred over all channels, not per group
        assert y.sum(-1).abs().max() > 1e-3
    torch.testing.assert_close(got, torch.eye(got.shape[-1], dtype=D64).expand_as(got))


def test_batch_whitening_centres_every_channel_and_zca_every_group_by_itself(features):
    y = whiten(features(40, 16), over="batch", method="zca", groups=2)
    torch.testing.assert_close(y.mean(0), torch.zeros(16, dtype=D64))
    torch.testing.assert_close(
        y[:, :8], whiten(features(40, 16)[:, :8], over="batch", method="zca")
    )


def test_zca_is_the_whitening_nearest_to_its_input(features):
    x = features(50, 6)
    distance = {
        m: (whiten(x, over="batch", method=m) - (x - x.mean(0))).norm()
        for m in ("zca", "cholesky", "pca")
    }
    assert distance["zca"] < min(distance["cholesky"], distance["pca"])


@pytest.mark.parametrize("method", ["zca", "newton", "cholesky"])
def test_permuting_samples_permutes_batch_whitening(method, features):
    x, order = features(30, 6), torch.randperm(30)
    torch.testing.assert_close(
        whiten(x[order], over="batch", method=method), whiten(x, over="batch", method=method)[order]
    )


@pytest.mark.parametrize("over", AXES)
def test_zca_does_not_care_about_the_order_of_what_it_whitens_but_cholesky_does(over, features):
    x = features(30, 6) if over == "batch" else features(6, 30)
    dim = 1 if over == "batch" else 0
    order = torch.tensor([3, 1, 5, 0, 2, 4])

    def moved(method):
        late = whiten(x, over=over, method=method).index_select(dim, order)
        early = whiten(x.index_select(dim, order), over=over, method=method)
        return (late - early).abs().max().item()

    assert moved("zca") < 1e-12
    assert moved("cholesky") > 1e-2


def test_rotating_features_rotates_zca_and_leaves_pca_but_changes_cholesky(features, rotation):
    # Batch whitening of x R: S -> Rᵀ S R. ZCA's W -> Rᵀ W R, so y -> y R and all distances stay.
    # PCA's components are the same (up to sign). Cholesky's factor is another one: y changes by a
    # rotation that depends on S, thus differently in every view.
    x, turn = features(60, 5), rotation(5)
    turned = {m: whiten(x @ turn, over="batch", method=m) for m in ("zca", "pca", "cholesky")}
    still = {m: whiten(x, over="batch", method=m) for m in ("zca", "pca", "cholesky")}
    torch.testing.assert_close(turned["zca"], still["zca"] @ turn)
    torch.testing.assert_close(turned["pca"].abs(), still["pca"].abs())
    assert (turned["cholesky"] - still["cholesky"] @ turn).abs().max() > 1e-2
    gram = [y["cholesky"] @ y["cholesky"].T for y in (turned, still)]
    torch.testing.assert_close(*gram)  # within one view it is a rotation


@pytest.mark.parametrize("method", ["zca", "cholesky", "newton"])
@pytest.mark.parametrize("over", AXES)
def test_scale_and_offset_do_not_matter(over, method, features):
    x = features(24, 12) if over == "batch" else features(12, 36)
    want = whiten(x, over=over, method=method)
    torch.testing.assert_close(whiten(1e6 * x - 3.0, over=over, method=method), want)
    torch.testing.assert_close(whiten(1e-6 * x, over=over, method=method), want)


def test_newton_steps_lead_to_zca_and_stop_short_of_it(features):
    x = features(40, 6)
    exact = whiten(x, over="batch", method="zca")
    error = [
        (whiten(x, over="batch", method="newton", newton_iterations=t) - exact).norm()
        for t in (1, 3, 5, 40)
    ]
    assert error[0] > error[1] > error[2] > 1e-3
    assert error[3] < 1e-9


def test_float32_stays_and_half_types_are_raised_to_float32_with_autocast_off(features):
    x = features(40, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = whiten(x, over="batch", method="zca")
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, whiten(x, over="batch", method="zca"), rtol=0, atol=0)
    assert whiten(x.bfloat16(), over="batch", method="zca").dtype == torch.float32
    assert whiten(x.double(), over="batch", method="zca").dtype == D64


@has_switches
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_full_precision_leaves_no_setting_behind(device):
    backend = (torch.backends.cuda if device == "cuda" else torch.backends.mkldnn).matmul
    kept = backend.fp32_precision
    try:
        backend.fp32_precision = "none"
        torch.backends.fp32_precision = "tf32"
        with full_precision(torch.device(device)):
            assert backend.fp32_precision == "ieee"
        assert backend.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"  # is still followed
        assert backend.fp32_precision == "ieee"
        backend.fp32_precision = "tf32"  # a setting of its own stays its own
        with full_precision(torch.device(device)):
            assert backend.fp32_precision == "ieee"
        assert backend.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = "none"
        backend.fp32_precision = kept


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_full_precision_by_the_one_switch_of_older_torch(device, monkeypatch):
    monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace())
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision(torch.device(device)):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@has_switches
def test_full_precision_agrees_with_the_older_switch():
    switch = torch.backends.cuda.matmul
    switch.allow_tf32 = True
    try:
        with full_precision(torch.device("cuda")):
            assert switch.fp32_precision == "ieee"
        assert switch.allow_tf32  # raises where the two ways of asking disagree
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        switch.allow_tf32 = False
    assert not switch.allow_tf32


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((8, 8), {"over": "batch"}, "needs more than 8 samples, got 8"),
        ((30, 10), {"groups": 4}, "10 is not divisible by 4 groups"),
        ((30, 10), {"over": "axis0"}, "unknown whitening axis 'axis0'; known: batch, channels"),
        ((30, 10), {"method": "svd"}, "unknown whitening method 'svd'; known: cholesky, newton"),
        ((30, 10), {"eps": 1.5}, "eps must be between 0 and 1, got 1.5"),
        ((30, 10), {"newton_iterations": 3}, "belongs to method 'newton', got 3 with method 'zca'"),
        ((30, 10), {"method": "newton", "newton_iterations": 0}, "must be at least 1"),
        ((30, 10), {"groups": 0}, "groups must be at least 1, got 0"),
        ((30,), {}, "wants \\[..., N, D\\]"),
        ((30, 10), {"partition": torch.zeros(10, dtype=torch.long)}, "not a permutation"),
        ((30, 10), {"partition": torch.arange(9)}, "partition \\[9\\] does not fit"),
    ],
)
def test_faults_say_what_and_what_to_do(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        whiten(torch.randn(shape), **{"over": "batch", "method": "zca", **settings})


def test_shrinkage_allows_fewer_samples_than_channels(features):
    x = features(4, 8)
    got = whiten(x, over="batch", method="cholesky", eps=0.1)
    centred = x - x.mean(0)
    shrunk = 0.9 * centred.T @ centred / 3 + 0.1 * torch.eye(8, dtype=D64)
    want = torch.linalg.solve_triangular(torch.linalg.cholesky(shrunk), centred.T, upper=False).T
    torch.testing.assert_close(got, want)


def test_every_leading_index_is_whitened_by_itself(features):
    x = features(2, 3, 20, 8)
    partition = torch.stack([torch.randperm(8) for _ in range(6)]).view(2, 3, 8)
    y = whiten(x, over="batch", method="cholesky", groups=2, partition=partition)
    alone = whiten(x[1, 2], over="batch", method="cholesky", groups=2, partition=partition[1, 2])
    torch.testing.assert_close(y[1, 2], alone)


def test_partition_of_one_group_changes_nothing_for_zca_and_undone_order_is_the_input_order(
    features,
):
    x, order = features(12, 36), torch.randperm(36)
    torch.testing.assert_close(
        whiten(x, over="channels", method="zca", partition=order),
        whiten(x, over="channels", method="zca"),
    )
    two = whiten(x, over="channels", method="zca", groups=2, partition=order)
    by_hand = whiten(x[:, order], over="channels", method="zca", groups=2)
    torch.testing.assert_close(two[:, order], by_hand)


def test_transposed_samples_are_new_memory_rows_first():
    for x in (torch.rand(3, 70, 65), torch.rand(3, 65, 70).mT, torch.rand(2, 4, 1)):
        transposed, before = ChannelGroups("channels", 2).transpose(x), x.clone()
        assert transposed.is_contiguous() and torch.equal(transposed, x.mT)
        transposed.zero_()
        assert torch.equal(x, before)


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(functional)
    assert result.attempted and not result.failed
