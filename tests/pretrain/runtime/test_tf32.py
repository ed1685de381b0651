"""float32 is IEEE's, and TF32 is asked for."""

from collections.abc import Iterator

import pytest
import torch

from pretrain.runtime.tf32 import set_tf32, tf32_faults

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def torchs_own_setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("allowed", [False, True])
def test_convolutions_and_products_have_one_setting(allowed: bool) -> None:
    set_tf32(not allowed)
    set_tf32(allowed)
    assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.backends.cuda.matmul.allow_tf32 is allowed


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9")
def test_a_setting_for_all_of_torch_does_not_reach_float32() -> None:
    torch.backends.fp32_precision = "tf32"
    try:
        set_tf32(False)
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"


def test_a_device_without_tf32_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tf32_faults("precision", "float32", CPU) == []
    (fault,) = tf32_faults("compute.precision", "tf32", CPU)
    assert fault == "compute.precision tf32 needs a GPU; use float32 here"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    (fault,) = tf32_faults("precision", "tf32", GPU)
    assert fault.startswith("precision tf32: Tesla V100 has none") and "\n" not in fault
    assert tf32_faults("precision", "float32", GPU) == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert tf32_faults("precision", "tf32", GPU) == []


@pytest.mark.parametrize(
    ("override", "precision"), [("0", "tf32"), ("1", "float32"), ("1", "bf16")]
)
def test_the_drivers_override_is_told(
    override: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    (fault,) = tf32_faults("precision", precision, GPU)
    assert fault == (
        f"NVIDIA_TF32_OVERRIDE is {override}, which overrides precision {precision}; unset it"
    )
    other = "float32" if precision == "tf32" else "tf32"
    assert tf32_faults("precision", other, GPU) == []
