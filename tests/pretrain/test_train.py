"""The stage: what it refuses before and at the start."""

import doctest
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain import train
from pretrain.config.pretrain import PretrainConfig
from pretrain.train import check_stage, pretrain

Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")


def test_checks_before_the_start_name_bad_images_and_missing_folders(
    tiny: Make, tmp_path: Path
) -> None:
    config = tiny()
    assert check_stage(config.model_dump(mode="json")) == []
    (tmp_path / "images" / "03.png").write_bytes(b"not a png")
    (fault,) = check_stage(config.model_dump(mode="json"))
    assert "03.png: not a readable image" in fault
    gone = tiny(data={"name": "x", "root": str(tmp_path / "gone")})
    (fault,) = check_stage(gone.model_dump(mode="json"))
    assert fault.endswith("gone: no such folder; wanted a folder of images")


def test_fewer_images_than_a_batch_are_refused(tiny: Make, tmp_path: Path) -> None:
    config = tiny(batch_size=24, loss={"name": "w-mse", "sub_batch": 8})
    with pytest.raises(ValueError, match="20 images are less than one batch of 24"):
        pretrain(config, tmp_path / "run")


def test_the_examples_of_the_docstrings() -> None:
    result = doctest.testmod(train)
    assert result.attempted and not result.failed
