"""The step's benchmark: a cut step is a whole one, each way to compute, valid cases."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import step
from benchmarks.command import main
from benchmarks.device import tensors_mb
from benchmarks.loader import LOADER_CASES
from benchmarks.step import (
    CPU_CASES,
    GPU_CASES,
    PARTS,
    WARM_UP,
    Steps,
    recipe_case,
    step_config,
    step_rows,
)
from pretrain.config.methods import LOSS_NAMES

IMAGES = dataclasses.replace(
    LOADER_CASES[0], image_size=(60, 45), num_images=6, num_views=2,
    augment={"size": 32, "colours": "on_device"},
)  # fmt: skip
SMALL: dict[str, Any] = {
    "model": {"arch": "resnet18", "embedding_dim": 4}, "loss": {"name": "w-mse", "sub_batch": 8}
}  # fmt: skip
TINY = dataclasses.replace(CPU_CASES[0], title="tiny", images=IMAGES, batch=8, config=SMALL)
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["w-mse", "simclr", "simsiam", "byol", "moco-v2"])
def test_a_cut_step_computes_what_a_whole_one_does(tmp_path: Path, name: str) -> None:
    loss = SMALL["loss"] if name == "w-mse" else {"name": name}
    case = dataclasses.replace(TINY, config={**SMALL, "loss": loss})
    config = step_config(case, 0, tmp_path, {})
    views = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    grads = []
    for way in ("take", "take_apart"):
        torch.manual_seed(0)
        steps = Steps(config, CPU)
        torch.manual_seed(1)  # of the sub-batches
        getattr(steps, way)(views)
        grads.append([p.grad for p in steps.model.parameters() if p.requires_grad])
    for whole, cut in zip(*grads, strict=True):
        torch.testing.assert_close(cut, whole)


def test_the_queue_of_the_workers_is_used_up_before_the_clock_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[torch.Tensor] = []

    class Counted(Steps):
        def take(self, views: torch.Tensor) -> float:
            taken.append(views)
            return 1.0

        def take_apart(self, views: torch.Tensor) -> dict[str, float]:
            return dict.fromkeys(PARTS, 1.0)

    monkeypatch.setattr(step, "Steps", Counted)
    step_rows(TINY, rounds=2, workers=1, device=CPU, compute={})
    steady = [views for views in taken if views is taken[0]]
    assert len(steady) == WARM_UP["cpu"] + 2 + 1  # one more for its memory
    assert len(taken) - len(steady) == WARM_UP["cpu"] + 1 * 2 + 1 + 2 * 1


def test_the_options_reach_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "CPU_CASES", (TINY,))
    monkeypatch.setattr(step, "GPU_CASES", (TINY,))
    asked: list[dict[str, Any]] = []

    def rows(*arguments: Any) -> dict[str, step.Row]:
        asked.append(arguments[-1])
        return {"tiny": {"whole": 2.0, "peak MB": 3.0}}

    monkeypatch.setattr(step, "step_rows", rows)
    path = tmp_path / "step.json"
    words = ["step", "--precision", "bf16", "--channels-last", "--compile", "--json", str(path)]
    assert main(words) == 0
    assert asked == [{"precision": "bf16", "channels_last": True, "compile": True}]
    content = json.loads(path.read_text(encoding="utf-8"))
    rest = {"recipe": None, "batch_size": None, "rounds": 3, "threads": None, "workers": 0}
    assert content["options"] == {**rest, **asked[0]}
    (table,) = content["tables"]
    (row,) = table["rows"]
    assert (row["whole"], row["peak MB"], row["data"]) == (2.0, 3.0, None)
    assert "bf16, channels_last, compile" in table["title"] and table["about"]["device"]


def test_every_loss_is_a_case_of_two_views(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[step.StepCase] = []

    def rows(case: step.StepCase, *_: Any) -> dict[str, step.Row]:
        cases.append(case)
        return {case.title: {"whole": 2.0}}

    monkeypatch.setattr(step, "step_rows", rows)
    assert main(["methods", "--rounds", "1"]) == 0
    assert [case.config["loss"]["name"] for case in cases] == list(LOSS_NAMES)
    for case in cases:
        assert step_config(case, 0, Path(), {}).num_views == 2


def test_any_recipe_takes_the_place_of_the_cases(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    views = [{"solarize": 0.5}, {"size": 24}]
    content = {
        "method": "mine", "data": {"name": "absent", "root": "/absent"},
        "augment": {"size": 32, "views": views}, "model": {"embedding_dim": 4},
        "loss": {"name": "simclr"}, "optimizer": {"name": "lars", "lr_per_256": 0.3},
        "batch_size": 512, "epochs": 100, "probe": {"every_epochs": 10},
    }  # fmt: skip
    path.write_text(json.dumps(content), encoding="utf-8")
    assert recipe_case(path).batch == 512
    case = recipe_case(path, 8)
    assert case.title == "mine, resnet18, 8 x 2 views of 32 px"
    config = step_config(case, 0, tmp_path, {})
    assert (config.loss.name, config.batch_size, config.optimizer.name) == ("simclr", 8, "lars")
    case = dataclasses.replace(case, images=dataclasses.replace(case.images, num_images=8))
    assert all(row["whole"] for row in step_rows(case, 1, 0, CPU, {}).values())


def test_what_is_no_recipe_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("loss: {name: simclrr}", encoding="utf-8")
    assert main(["step", "--recipe", str(path)]) == 2
    assert f"{path}: loss" in capsys.readouterr().err
    assert main(["step", "--batch-size", "8"]) == 2
    assert "no effect without --recipe" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_precision_that_the_machine_has_not_is_one_line(
    precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "best_device", lambda: CPU)
    assert main(["step", "--precision", precision]) == 2
    answer = capsys.readouterr()
    said = f"benchmark: compute.precision {precision} needs a GPU; use float32 here\n"
    assert (answer.out, answer.err) == ("", said)


def test_bf16_in_channels_last_takes_steps(tmp_path: Path) -> None:
    compute = {"precision": "bf16", "channels_last": True}
    steps = Steps(step_config(TINY, 0, tmp_path, compute), CPU)
    views = torch.randn(2, 8, 3, 32, 32)
    assert steps.take(views) > 0 and steps.take_apart(views).keys() == {*PARTS}
    weight = steps.model.encoder.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    model = steps.model
    assert tensors_mb(model, steps.optimizer) == pytest.approx(4 * 47.4, rel=0.05)


@pytest.mark.parametrize("case", [*CPU_CASES, *GPU_CASES], ids=lambda case: case.title)
def test_step_cases_are_valid(case, tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert step_config(case, 0, tmp_path, {}).batch_size == case.batch
