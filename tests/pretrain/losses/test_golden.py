"""Against the recorded values of the published code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.losses import CWRGPLoss, WMSELoss

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
ZCA_CASES = [name for name in CASES if str(np.load(GOLDEN / f"{name}.npz")["method"]) == "zca"]


def golden_loss(case):
    common = {
        "iterations": int(case["iterations"]),
        "normalize": bool(case["normalize"]),
        "method": str(case["method"]),
        "eps": float(case["eps"]),
    }
    sub_batch, groups = int(case["sub_batch"]), int(case["groups"])
    if str(case["axis"]) == "batch":
        return WMSELoss(sub_batch, groups=groups, **common)
    weight = float(case["covariance_weight"])
    return CWRGPLoss(sub_batch, groups, covariance_weight=weight, **common)


def test_all_golden_vectors_are_here():
    assert len(CASES) == 8
    assert ZCA_CASES


def check_against_published(name, device="cpu"):
    case = np.load(GOLDEN / f"{name}.npz")
    x = torch.from_numpy(case["embeddings"]).to(device).requires_grad_()
    partition = torch.from_numpy(case["channel_partition"])
    loss_fn = golden_loss(case)
    loss = loss_fn(
        x,
        batch_permutation=torch.from_numpy(case["batch_permutation"]),
        channel_partition=partition if partition.numel() else None,
    )
    loss.backward()
    gradient = torch.from_numpy(case["gradient"]).to(device)
    assert loss.item() == pytest.approx(float(case["loss"]), rel=1e-9)
    assert (x.grad - gradient).norm() <= 1e-7 * gradient.norm()
    assert loss_fn.regularized_count == 0


@pytest.mark.parametrize("name", CASES)
def test_equals_the_published_loss_and_gradient(name):
    check_against_published(name)


@pytest.mark.usefixtures("zca_by_matmul")
@pytest.mark.parametrize("name", ZCA_CASES)
def test_zca_by_matmul_equals_the_published_loss_and_gradient(name):
    check_against_published(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_equals_the_published_loss_and_gradient_on_a_gpu(name):
    check_against_published(name, "cuda")
