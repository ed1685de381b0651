"""A detector's precision: float32 is IEEE's, TF32 asked for, mixed precision on a GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from transfer.config.finetune import signed_keys
from transfer.detection.cli import read_config
from transfer.detection.precision import precision_faults, precision_of, set_tf32
from transfer.detection.trainer import Trainer

CONFIG = Path(__file__).resolve().parents[3] / "configs/transfer/digits_faster_rcnn_voc.yaml"


def cfg_with(*changes: str, device: str = "cpu") -> CfgNode:
    return read_config(str(CONFIG), ["MODEL.DEVICE", device, *changes])


@pytest.fixture(autouse=True)
def torchs_own_setting() -> Iterator[None]:
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture
def a100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))


def test_mixed_precision_is_refused_on_the_cpu() -> None:
    cfg = cfg_with("SOLVER.AMP.ENABLED", "True")
    (fault,) = precision_faults(cfg)
    assert fault.startswith("SOLVER.AMP.ENABLED is True, but mixed precision needs a GPU")
    assert precision_faults(cfg, trains=False) == []
    assert precision_faults(cfg_with()) == []


def test_tf32_is_refused_where_there_is_none(a100: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an evaluation, and where the driver is told otherwise."""
    for trains in (True, False):
        assert precision_faults(cfg_with("MODEL.PRECISION", "tf32"), trains=trains) == [
            "MODEL.PRECISION tf32 needs a GPU; use float32 here"
        ]
    cfg = cfg_with("MODEL.PRECISION", "tf32", device="cuda")
    assert precision_faults(cfg) == [] == precision_faults(cfg_with(device="cuda"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert precision_faults(cfg) == [
        "NVIDIA_TF32_OVERRIDE is 0, which overrides MODEL.PRECISION tf32; unset it"
    ]
    assert precision_faults(cfg_with(device="cuda")) == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    (fault,) = precision_faults(cfg)
    assert fault.startswith("MODEL.PRECISION tf32: Tesla V100 has none")


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_detector_sets_what_float32_means(precision: str) -> None:
    """Whether it is trained or evaluated: both build it here."""
    set_tf32(precision != "tf32")
    with torch.device("meta"):
        Trainer.build_model(cfg_with("MODEL.PRECISION", precision, device="meta"))
    switches = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    assert switches == (precision == "tf32",) * 2


def test_it_is_part_of_the_identity_where_it_is_not_float32() -> None:
    plain = {"MODEL": {"PRECISION": "float32"}}
    assert signed_keys(plain, "sgd") == signed_keys({}, "sgd")
    tf32 = signed_keys({"MODEL": {"PRECISION": "tf32"}}, "sgd")
    assert tf32 == signed_keys({}, "sgd") | {"MODEL.PRECISION": "tf32"}


def test_the_provenance_says_it() -> None:
    assert precision_of(cfg_with()) == "float32"
    assert precision_of(cfg_with("MODEL.PRECISION", "tf32")) == "tf32"
    mixed = cfg_with("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bf16")
    assert precision_of(mixed) == "bf16 in training, float32 in evaluation"
