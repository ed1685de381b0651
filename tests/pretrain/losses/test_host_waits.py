"""No loss makes the host wait for the GPU: seen on one without values, and in the backward pass."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.loss import LossSettings, loss_config
from pretrain.losses import build_loss
from tests.fake_cuda import CUDA, fake_cuda
from tests.pretrain.losses.compared import COMPARED

WHITENING: dict[str, dict[str, Any]] = {
    "w-mse": {"name": "w-mse", "sub_batch": 64},
    "w-mse, groups": {"name": "w-mse", "sub_batch": 64, "groups": 2, "iterations": 2},
    "cw-rgp": {"name": "cw-rgp", "sub_batch": 8, "groups": 2, "covariance_weight": 0.1},
    "newton": {"name": "w-mse", "sub_batch": 64, "method": "newton"},
    "cholesky over channels": {"name": "cw-rgp", "sub_batch": 8, "groups": 2, "method": "cholesky"},
    "zca over the batch": {"name": "w-mse", "sub_batch": 64, "method": "zca"},
    "batch-norm": {"name": "batch-norm"},
    "none": {"name": "none"},
}
CASES: dict[str, LossSettings] = {
    **{name: loss_config(**settings) for name, settings in WHITENING.items()},
    **COMPARED,
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_a_loss_reads_nothing_and_waits_for_no_copy(config: LossSettings) -> None:
    with fake_cuda() as gpu:
        loss = build_loss(config).to(CUDA)
        gpu.waits.clear()
        try:
            value = loss(torch.empty(2, 128, 40, device=CUDA), generator=torch.Generator())
        except RuntimeError as error:  # the copy of a Python number, as by x.new_tensor(0.5)
            assert "NVIDIA driver" not in str(error), "the loss copies a value from the host"
            raise
        assert value.device == CUDA and value.shape == ()
        assert not gpu.waits


@pytest.mark.parametrize(("dim", "on_cpu"), [(32, False), (40, True)])
def test_only_small_eigenproblems_of_pca_stay_on_the_gpu(dim: int, on_cpu: bool) -> None:
    with fake_cuda() as gpu:
        loss = build_loss(loss_config(name="w-mse", sub_batch=64, method="pca")).to(CUDA)
        gpu.waits.clear()
        value = loss(torch.empty(2, 128, dim, device=CUDA), generator=torch.Generator())
        assert value.device == CUDA
        assert ("aten::_linalg_eigh" in gpu.calls) is not on_cpu
        assert bool(gpu.waits) is on_cpu and all("inverse_sqrt.py" in wait for wait in gpu.waits)


class Reads(TorchDispatchMode):
    """Counts the values that are read."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.usefixtures("zca_by_matmul")
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_the_backward_pass_reads_nothing(config: LossSettings) -> None:
    """Nor does a forward pass that makes the derivative, where no eigenvalue is looked at."""
    loss = build_loss(config)
    x = torch.randn(2, 128, 40, requires_grad=True)
    with Reads() as reads:
        value = loss(x, generator=torch.Generator().manual_seed(0))
        forward = reads.count
        value.backward()
    assert reads.count == forward and x.grad is not None
    assert forward == 0 or config.name not in COMPARED
