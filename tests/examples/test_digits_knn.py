"""The table of k-NN on digits: each row measured once, mean and deviation."""

from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from examples import digits_knn
from examples.digits_knn import run_study, study_table
from pretrain.config.probe import ProbeConfig


@pytest.fixture
def probe(tmp_path: Path) -> ProbeConfig:
    """Write images whose raw pixels tell their class; return the probe of them."""
    for split in ("train", "val"):
        for name, level in (("bright", 200), ("dark", 40)):
            folder = tmp_path / "labelled" / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (32, 32), (level + index,) * 3).save(folder / f"{index}.png")
    data = {"name": "levels", "root": tmp_path / "labelled", "format": "imagefolder"}
    return ProbeConfig.model_validate({"data": data, "image": {"size": 32}, "knn": {"k": 1}})


def test_every_row_is_measured_once(
    probe: ProbeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = {
        "method": "w-mse",
        "data": probe.data.model_dump(mode="json"),
        "augment": {"size": 32},
        "model": {"arch": "resnet18", "projector_hidden": 16, "embedding_dim": 2},
        "loss": {"name": "w-mse", "sub_batch": 4},
        "optimizer": {"lr": 0.001},
        "batch_size": 4,
        "max_steps": 1,
    }
    probe = probe.model_copy(update={"random_arch": "resnet18"})
    results = run_study({"one": recipe}, probe, [0, 1], tmp_path / "study")
    assert {name: sorted(row) for name, row in results.items()} == {
        "raw pixels": [0], "random features": [0, 1], "one": [0, 1]
    }  # fmt: skip
    assert results["raw pixels"][0] == {"knn/top1": 100.0}

    def never(*_: object) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(digits_knn, "pretrain", never)
    monkeypatch.setattr(digits_knn, "run_probe", never)
    assert run_study({"one": recipe}, probe, [0, 1], tmp_path / "study") == results
    with pytest.raises(AssertionError):  # another recipe is not the one that was measured
        run_study({"one": recipe | {"max_steps": 2}}, probe, [0], tmp_path / "study")


def test_the_table_holds_mean_and_sample_deviation() -> None:
    table = study_table(
        {"a": {0: {"knn/top1": 40.0}, 1: {"knn/top1": 43.0}}, "b": {0: {"knn/top1": 7.0}}}
    )
    text = StringIO()
    Console(file=text, width=80).print(table)
    assert "41.5 ± 2.1" in text.getvalue() and "7.0 " in text.getvalue()
