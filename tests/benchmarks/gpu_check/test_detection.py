"""A row of a detector: its step, its rate and its memory."""

from pathlib import Path

import pytest

from benchmarks.detection import CASES, DATASET, draw_dataset
from benchmarks.gpu_check import detection
from benchmarks.gpu_check.detection import detector_on_device, detector_row
from transfer.detection.loader import register


@pytest.mark.slow
def test_a_detector_takes_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TINY": True, "SIZE": 64, "ROUNDS": 1, "WARM_UP": 0}.items():
        monkeypatch.setattr(detection, name, value)
    monkeypatch.setattr(detection, "inference_row", lambda *_: {"inference ms": 1.0})
    register({DATASET: draw_dataset(tmp_path, 64)})
    file = next(file for title, file in CASES.items() if "FPN" in title)
    row = detector_row(file, "float32", 2, tmp_path)
    assert row["images/s"] == pytest.approx(2e3 / row["ms"]) and row["inference ms"] == 1.0
    assert row["estimate"].startswith("memory, a rule of thumb")


@pytest.mark.slow
def test_a_detector_against_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "CHECK_SIZE", 64)
    row = detector_on_device()["float32"]
    assert row["loss"] > 0
    if not detection.ON_GPU:
        assert row["features"] == 0
