"""The loader's part: drawn JPEGs, valid configs, the share of colours."""

from pathlib import Path

import pytest

from benchmarks.gpu_check import loader
from benchmarks.gpu_check.loader import batches, config_of, drawn_jpegs, finishing_row


@pytest.fixture(autouse=True)
def small(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TINY": True, "BATCH": 4, "NUM_WORKERS": 0}.items():
        monkeypatch.setattr(loader, name, value)


def test_batches_go_around_the_drawn_images(tmp_path: Path) -> None:
    images = drawn_jpegs(tmp_path / "jpegs")
    config = config_of({"augment": {"colours": "in_loader"}})
    shapes = [tuple(views.shape) for views in batches(config, images, 3)]
    assert len(images) == 8 and shapes == [(4, 4, 3, 32, 32)] * 3


def test_the_row_of_colours(tmp_path: Path) -> None:
    row = finishing_row(drawn_jpegs(tmp_path / "jpegs"))
    assert all(row[name] > 0 for name in ("ms", "ms without blur", "copy ms"))
