"""The trainer's variants, and a run that is resumed, on the CPU."""

from pathlib import Path

import pytest

from benchmarks.gpu_check.timing import ON_GPU
from benchmarks.gpu_check.training import DIGITS, LEFT_OUT, VARIANTS, digits_config, resume


@pytest.mark.parametrize("title", VARIANTS)
def test_every_variant_is_a_valid_config(title: str) -> None:
    config = digits_config(VARIANTS[title])
    assert config.log_every == 1 and config.num_views == 2


def test_a_cpu_leaves_out_half_precision() -> None:
    assert {"fp16", "bf16"} <= LEFT_OUT or ON_GPU


def test_a_resumed_run_ends_like_one_in_one_go(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"arch": "resnet18", "projector_hidden": 16, "embedding_dim": 32}
    monkeypatch.setitem(DIGITS, "model", model)
    monkeypatch.setitem(DIGITS, "batch_size", 8)
    monkeypatch.setitem(DIGITS, "loss", {"name": "cw-rgp", "sub_batch": 8, "groups": 2})
    row = resume()
    assert len(row["logged"]) == 4
    if not ON_GPU:
        assert row["resumed differs by"] == row["two whole runs differ by"] == 0
